"""`python -m gradcheck`."""

import os
import sys

# `python -m` puts the working directory first, whose random.py would be taken for the standard library's. Targets get it anyway.
_ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
if __name__ == "__main__" and not sys.flags.safe_path and os.path.abspath(sys.path[0]) != _ROOT:
    del sys.path[0]

from gradcheck.cli.main import main  # noqa: E402

if __name__ == "__main__":
    main()
