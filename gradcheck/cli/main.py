"""The command `gradcheck`: it answers what is quick at once, and leaves the rest to `gradcheck.cli.app`.

Exit codes: 0 nothing at --fail-on or above, 1 findings, 2 could not run, 128 + the signal that interrupted: 130 after Ctrl-C.
"""

import os

try:
    import contextlib
    import io
    import sys
    from typing import NoReturn

    from gradcheck import interrupts
    from gradcheck.cli import guard
    from gradcheck.cli.exit import FAILED, LONGEST, complain, exits, explain, version
except KeyboardInterrupt:  # nothing has begun
    os._exit(130)


def main() -> None:
    """The `gradcheck` command."""
    _need_streams()
    words = sys.argv[1:]
    if words and words != ["--version"]:
        _need_folder()
    if guard.wanted(words):
        sys.exit(guard.run(lambda: _answer(words)))
    _answer(words)


def _answer(words: list[str]) -> NoReturn:
    """Raises SystemExit with the exit code."""
    code: int | str | None = 0
    with interrupts.ending(guard.heard):
        try:
            code = _called(words)
            if sys.stdout is not None:
                sys.stdout.flush()
        except KeyboardInterrupt:
            complain("interrupted")
        except BrokenPipeError:  # the reader of our output has gone: `gradcheck rules | head`
            _drop_output()
            code = 1
        except ModuleNotFoundError as error:  # of the commands themselves: what they run is looked after below
            complain(f"error: gradcheck needs the package {error.name}, which {sys.executable} does not have")
            complain("help: python -m pip install gradcheck, with that Python")
            code = FAILED
        except OSError as error:
            _drop_output()
            complain(f"error: {error.strerror}: {error.filename or 'the output cannot be written'}"[:LONGEST])
            complain("help: check the name, and what it leads to" if error.filename else "help: redirect it to where there is room")
            code = FAILED
        if interrupts.received():
            code = interrupts.exit_code()
            interrupts.no_more()
    sys.exit(code)


def _need_folder() -> None:
    """Raises SystemExit where the working directory has been removed."""
    try:
        os.getcwd()
    except OSError as error:
        complain(f"error: there is no working directory: {error.strerror}")
        complain("help: change to a folder that exists")
        sys.exit(FAILED)


def _called(words: list[str]) -> int | str | None:
    try:
        if not _quickly(words):
            from gradcheck.cli.app import app

            app()
    except SystemExit as ended:
        return ended.code
    return 0


def _need_streams() -> None:
    """Streams that were closed are not left to the files that are opened next: what is meant for stdout must not come into one."""
    closed = sys.stdout is None
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), descriptor)
    if sys.stderr is None:
        sys.stderr = os.fdopen(2, "w", encoding="utf-8", closefd=False)
    if closed:
        complain("error: stdout is closed: there is nowhere to report to")
        complain("help: redirect it instead: gradcheck ... >/dev/null")
        sys.exit(FAILED)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that cannot show a character is no reason to fail


def _drop_output() -> None:
    """What is left in the buffer cannot be written when the interpreter ends, either."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


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
