"""How a module of gradcheck's is started in a fresh interpreter, so that it finds gradcheck and the standard library first.

`python -m` would put the working directory before both: a gradcheck.py or random.py of the user's that lies there would be imported.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

_ROOT = str(Path(__file__).resolve().parent.parent)


def code(module: str, interpreter: str = sys.executable) -> str:
    """Python text that runs `main()` of a module. The interpreter's own gradcheck is taken: ours only where it is this interpreter."""
    lines = ["import sys", "if not sys.flags.safe_path: del sys.path[0]"]
    if interpreter == sys.executable:  # gradcheck may have been found in the working directory
        lines.append(f"if {_ROOT!r} not in sys.path: sys.path.append({_ROOT!r})")
    lines += ["sys.argv[0] = 'gradcheck'", "from gradcheck.interrupts import quietly", "quietly()", f"from {module} import main", "main()"]
    return "\n".join(lines) + "\n"


def command(module: str, words: Sequence[str] = (), interpreter: str = sys.executable, options: Sequence[str] = ()) -> list[str]:
    """The command line for it. `options`: of the interpreter."""
    return [interpreter, *options, "-c", code(module, interpreter), *words]
