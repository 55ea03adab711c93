"""What every command shares: exit codes, errors in words, settings, and the answers that need no typer."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from gradcheck import interrupts

if TYPE_CHECKING:
    import types

    from gradcheck.errors import GradcheckError

FOUND, FAILED = 1, 2
LONGEST = 600  # characters of an error, where nothing is loaded that cuts it
# What the system says of a file that was named, or of how much may be open: no fault of gradcheck's.
SURROUNDINGS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EPERM, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)
USUAL_DEPTH = 1000  # Python's own recursion limit


def complain(text: str) -> None:
    """A line on stderr, where there is one that can be written to."""
    with contextlib.suppress(OSError, ValueError):
        print(text, file=sys.stderr, flush=True)


def version() -> None:
    from gradcheck.version import __version__

    print(f"gradcheck {__version__}")


def explain(name: str, output_format: str = "text", paths: list[str] | None = None) -> None:
    """Prints a rule's page. The built-in rules are looked through first: installed packs take longer to find."""
    from gradcheck.judge.registry import builtin_rules, find_rule, load_rules
    from gradcheck.report.rule_page import rule_facts, rule_page

    text = wants_text(output_format)
    found = find_rule(name, builtin_rules())
    if found is None:
        from gradcheck.config.settings import load
        from gradcheck.judge.select import unknown

        every = load_rules(load(isolated=False).with_flags(rule_paths=paths).rule_paths)
        found = find_rule(name, every)
        if found is None:
            raise unknown(name, every)
    if text:
        print(rule_page(found))
    else:
        import json

        print(json.dumps(rule_facts(found), indent=2))


@contextmanager
def exits(color: str = "auto") -> Iterator[None]:
    """Turns what can go wrong into one message on stderr and an exit code."""
    from gradcheck.errors import GradcheckError

    try:
        with _warnings_once():
            yield
    except BrokenPipeError:
        raise
    except KeyboardInterrupt:
        _say_interrupted()
    except Exception as e:
        if interrupts.received():  # what an interrupt leaves behind, as in an import that it cut short, is no fault of anybody's
            _say_interrupted()
        _say_what_failed(e, color)
        sys.exit(FAILED)
    except BaseException as e:
        if isinstance(e, SystemExit):
            raise
        said = " ".join(f"{type(e).__name__}: {e}".split())
        say(GradcheckError(f"the code that is run raised {said}, which is not an Exception", hint="raise an Exception"), color)
        sys.exit(FAILED)


@contextmanager
def _warnings_once() -> Iterator[None]:
    """A scan computes a step many times, of parts of a batch, too: what torch warns of is shown once, whatever its numbers, and at the
    user's line where gradcheck's frame hides it."""
    import re
    import warnings
    from traceback import walk_stack

    from gradcheck.cli.processes import OWN, is_users

    original, seen = warnings.showwarning, set[str]()

    def show(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
    ) -> None:
        text, places = re.sub(r"\d+", "0", str(message)), [(filename, lineno)]
        if text not in seen and filename.startswith(OWN):  # whatever the last one is, it started gradcheck
            places = [(f.f_code.co_filename, number) for f, number in walk_stack(None) if is_users(f.f_code.co_filename) and f.f_back]
        if text not in seen and places:
            seen.add(text)
            original(message, category, *places[0], file, line)

    warnings.showwarning = show
    try:
        yield
    finally:
        warnings.showwarning = original


def _say_what_failed(e: Exception, color: str) -> None:
    emptied = _emptied(e)
    if emptied:
        said = f"{type(e).__name__}: {e}"[:LONGEST]
        complain(f"error: the code that is run has emptied {emptied}, without which nothing is imported: {said}")
        complain("help: leave it as it is, or put back what was in it")
    elif isinstance(e, RecursionError) and sys.getrecursionlimit() < USUAL_DEPTH:
        complain(f"error: the code that is run has set the recursion limit to {sys.getrecursionlimit()}, which is too little for torch")
        complain("help: leave it as it is, or raise it")
    elif (told := _told(e)) is not None:
        say(told, color)
    else:
        _say_bug(e)


def _told(e: Exception) -> GradcheckError | None:
    """What stands in the way in words, with the next step; None for what is a bug."""
    from gradcheck.errors import GradcheckError

    if isinstance(e, GradcheckError):
        return e
    if isinstance(e, RecursionError):
        what = "the model, or its training step, is nested deeper than Python's recursion limit"
        return GradcheckError(what, hint="a module that holds itself has no end; sys.setrecursionlimit allows more depth")
    if isinstance(e, MemoryError):
        return GradcheckError("there is no memory left", hint="give it more (ulimit -v), or scan a smaller model or batch")
    if isinstance(e, FileNotFoundError) and "temporary directory" in str(e):
        return GradcheckError("no temporary directory can be written to", hint="set TMPDIR to one, and see ulimit -f")
    if isinstance(e, OSError) and e.errno in (errno.ENOSPC, errno.EDQUOT):
        return GradcheckError("there is no space left for what is written", hint="make room, or write elsewhere")
    if isinstance(e, OSError) and e.errno in SURROUNDINGS and e.filename is not None:
        return unusable(e)
    if isinstance(e, ModuleNotFoundError) and e.name == "torch":
        hint = "run gradcheck with the Python that has it: python -m pip install gradcheck there, then python -m gradcheck"
        return GradcheckError(f"there is no PyTorch in {sys.executable}", hint=hint)
    if isinstance(e, FileNotFoundError) and not _has_folder():
        hint = "what is scanned has removed it, or left for another one that it removed"
        return GradcheckError("the working directory is gone", hint=hint)
    return None


def unusable(error: OSError) -> GradcheckError:
    from gradcheck.errors import GradcheckError

    return GradcheckError(f"{os.fsdecode(error.filename)} cannot be used: {error.strerror}", hint="check the name, and what it leads to")


def _has_folder() -> bool:
    try:
        return bool(os.getcwd())
    except OSError:
        return False


def _emptied(error: Exception) -> str:
    """What of the import system had been emptied; "" for nothing. Where something is, this process can import nothing to say so with."""
    if sys.modules.get("os") is not os:
        return "sys.modules"
    if not sys.meta_path:
        return "sys.meta_path"
    from importlib.util import find_spec

    lost = error.name if isinstance(error, ModuleNotFoundError) and error.name in sys.stdlib_module_names else None
    return "sys.path" if lost and find_spec(lost) else ""  # which is put back after the user's code


def _say_interrupted() -> NoReturn:
    complain("interrupted")
    sys.exit(interrupts.exit_code())


def _say_bug(error: Exception) -> None:
    import traceback
    from types import FrameType

    from gradcheck.cli.processes import is_users, place_of

    replaced = _replaced(error)
    if replaced:
        complain(f"error: the code that is run has replaced {replaced}, which gradcheck needs: {type(error).__name__}: {error}")
        complain("help: leave it as it is, or put it back before the model is made")
        return
    frames = list(traceback.walk_tb(error.__traceback__))
    called = len(frames)
    while called and is_users(frames[called - 1][0].f_code.co_filename):
        called -= 1
    if any(isinstance(x, FrameType) for frame, _ in frames[called:] for x in _given(frame)):
        complain(f"error: the function of sys.settrace, or of sys.setprofile, raised {type(error).__name__}: {error}"[:LONGEST])
        complain("help: correct it, or set none: Python calls it in all code")
        return
    if called < len(frames) and _is_asked_of_all(frames[called][0]):
        frame, line = frames[-1]
        where = place_of(frame.f_code.co_filename, line, frame.f_code.co_name)
        complain(f"error: {where}, raised {' '.join(f'{type(error).__name__}: {error}'.split())}"[:LONGEST])
        complain("help: correct it there: gradcheck and torch ask this of every model")
        return
    complain("".join(traceback.format_exception(error)).rstrip("\n"))
    complain(f"error: gradcheck failed: {type(error).__name__}: {error}")
    complain("help: this is a bug in gradcheck; please report it with the lines above")


def _is_asked_of_all(frame: types.FrameType) -> bool:
    """Whether a frame runs a method of the user's that was given nothing but names and flags: `__hash__`, `__getattr__`, `parameters`.

    Of what was given anything else, gradcheck may have given it something wrong.
    """
    itself, *given = _given(frame) or [None]
    members = [getattr(m, "fget", getattr(m, "__func__", m)) for base in type(itself).__mro__ for m in vars(base).values()]
    return any(getattr(m, "__code__", None) is frame.f_code for m in members) and all(x is None or isinstance(x, str | int) for x in given)


def _given(frame: types.FrameType) -> list[object]:
    """The arguments of the function that a frame runs."""
    from inspect import getargvalues

    names, rest, keywords, values = getargvalues(frame)
    return [*(values.get(name) for name in names), *values.get(rest or "", ()), *values.get(keywords or "", {}).values()]


def _replaced(error: Exception) -> str:
    """The function of the standard library, or of tensors, in whose place is what raised this error or cannot be called; "" for none."""
    from gradcheck.cli.processes import is_users

    trace, codes = error.__traceback__, []
    while trace is not None:
        codes.append(trace.tb_frame.f_code)
        trace = trace.tb_next
    names = codes[-1].co_names if codes else ()
    said = str(error) if isinstance(error, TypeError) and "is not callable" in str(error) else ""
    tensor = getattr(sys.modules.get("torch"), "Tensor", None)
    for name, value in vars(tensor).items() if said.startswith("'NoneType'") and tensor else ():
        if value is None and name not in ("__doc__", "__hash__"):
            return f"torch.Tensor.{name}"
    for module in sorted(sys.stdlib_module_names & sys.modules.keys()):
        for name, value in list(vars(sys.modules[module]).items()):
            code = getattr(value, "__code__", None)
            called = {module, name} <= {*names} and not callable(value) and said.startswith(f"'{type(value).__name__}'")
            if called or (code in codes and is_users(code.co_filename)):
                return f"{module}.{name}"
    return ""


def wants_text(output_format: str) -> bool:
    from gradcheck.errors import ConfigError

    if output_format not in ("text", "json"):
        raise ConfigError(f"--output must be text or json; got {output_format!r}", hint="--output json")
    return output_format == "text"


def say(error: GradcheckError, color: str) -> None:
    from gradcheck.report.progress_bar import print_error

    print_error(error, "always" if color == "always" else "never" if color == "never" else "auto")
