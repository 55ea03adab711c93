"""The command `gradcheck`: it answers what is quick at once, and leaves the rest to `gradcheck.cli.app`.

Exit codes: 0 nothing at --fail-on or above, 1 findings, 2 could not run, 130 interrupted.
"""

from __future__ import annotations

import io
import os
import sys

from gradcheck.cli.exit import INTERRUPTED, exits, explain, version


def main() -> None:
    """The `gradcheck` command."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character is no reason to fail
    try:
        if not _quickly(sys.argv[1:]):
            from gradcheck.cli.app import app

            app()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:  # the reader of our output has gone: `gradcheck rules | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _quickly(words: list[str]) -> bool:
    """Answers `--version` and `rule NAME` without building typer's commands, which costs 0.1 s. Whether it did."""
    if words == ["--version"]:
        version()
    elif len(words) == 2 and words[0] == "rule" and not words[1].startswith("-"):
        with exits():
            explain(words[1])
    else:
        return False
    return True
