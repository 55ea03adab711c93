"""torchrun, each of whose processes is watched: `python -m gradcheck.live.launched`, started by `gradcheck watch -- torchrun ...`.

The launcher is torch's own with the options that it was given; what it starts is `gradcheck.live.child`, which runs the program.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gradcheck.errors import ConfigError
from gradcheck.report.stderr import print_error

VARIABLE = "GRADCHECK_WATCH"
CHILD = "gradcheck.live.child"


def main() -> None:
    from torch.distributed.run import main as launch
    from torch.distributed.run import parse_args

    order = json.loads(os.environ[VARIABLE])
    given: list[str] = order["arguments"]
    sys.argv[0] = "torchrun"  # its messages begin so
    args = parse_args(given)
    os.environ[VARIABLE] = json.dumps(order | program(args))
    launch([*options(given, args.training_script_args), "--module", CHILD])


def program(args: Any) -> dict[str, Any]:
    """What each process is to run. Ends this one where that is no Python program."""
    what = args.training_script
    if args.no_python:
        _refuse("--no-python starts no Python program", "put `with gradcheck.watch(model, optimizer):` around the loop")
    if not args.module and not Path(what).is_file():
        _refuse(f"there is no file {what}", "gradcheck watch -- torchrun --nproc-per-node=2 train.py")
    kind = "module" if args.module else "script"
    return {"kind": kind, "what": what, "arguments": args.training_script_args, "name": what, "launched": True}


def options(given: Sequence[str], behind: Sequence[str]) -> list[str]:
    """Of the launcher's arguments those before the program; `behind`: the program's own, which come last."""
    return list(given[: len(given) - len(behind) - 1])


def _refuse(what: str, hint: str) -> NoReturn:
    print_error(ConfigError(what, hint=hint))
    sys.exit(2)


if __name__ == "__main__":
    main()
