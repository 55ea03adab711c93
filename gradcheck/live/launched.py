"""A launcher whose processes run gradcheck: for `-- torchrun ...` and `-- accelerate launch ...`.

The launcher is the library's own with the options it was given; it starts a file of gradcheck's, which runs the program.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gradcheck.errors import ConfigError
from gradcheck.live.launch import VARIABLE
from gradcheck.report.progress_bar import print_error


def main() -> None:
    order = json.loads(os.environ[VARIABLE])
    given: list[str] = order["arguments"]
    parse, launch = LAUNCHERS[order["launcher"]]()
    sys.argv[0] = order["launcher"]  # its messages begin like this
    args = parse(given)
    os.environ[VARIABLE] = json.dumps(order | program(args))
    launch([*options(given, args.training_script_args), order["start"]])


def _torchrun() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from torch.distributed.run import main as launch
    from torch.distributed.run import parse_args

    return parse_args, launch


def _accelerate() -> tuple[Callable[..., Any], Callable[..., Any]]:
    from accelerate.commands.launch import launch_command, launch_command_parser

    parse = launch_command_parser().parse_args
    return parse, lambda words: launch_command(parse(words))


LAUNCHERS = {"torchrun": _torchrun, "accelerate launch": _accelerate}


def program(args: Any) -> dict[str, Any]:
    """What each process should run. Ends this process if that is not a Python program."""
    what = args.training_script
    if args.no_python:
        _refuse("--no-python starts no Python program", "put `with gradcheck.watch(model, optimizer):` around the loop")
    if not args.module and not Path(what).is_file():
        _refuse(f"there is no file {what}", "name the script behind the options of the launcher: torchrun --nproc-per-node=2 train.py")
    kind = "module" if args.module else "script"
    name = f"-m {what}" if args.module else what
    return {"kind": kind, "what": what, "arguments": args.training_script_args, "name": name, "launched": True}


def options(given: Sequence[str], behind: Sequence[str]) -> list[str]:
    """Of the launcher's arguments those before the program; `behind`: the program's own, which come last."""
    return list(given[: len(given) - len(behind) - 1])


def _refuse(what: str, hint: str) -> NoReturn:
    print_error(ConfigError(what, hint=hint))
    sys.exit(2)
