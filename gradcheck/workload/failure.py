"""An exception from the user's code, reported as a TargetError at the user's line."""

import re

from gradcheck.errors import TargetError
from gradcheck.types.location import Location, path_and_cell
from gradcheck.workload.source_sites import display_path, location_of_traceback

_SHADOWED = re.compile(r"^module 'gradcheck' has no attribute|^cannot import name .* from 'gradcheck'|^No module named 'gradcheck\.")


def one_line(text: str) -> str:
    """Someone else's text on one line of a message of ours; of a traceback, as a data loader's worker sends it, the beginning and end."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if any(line.endswith("Traceback (most recent call last):") for line in lines):
        lines = [lines[0], lines[-1]]
    return " ".join(lines)


def failure(what: str, error: BaseException, hint: str = "") -> TargetError:
    """A TargetError for an exception from the user's code, at the user's innermost line."""
    place = location_of_traceback(error.__traceback__)
    if isinstance(error, SyntaxError) and error.filename:
        column = error.offset or 1
        path, cell = path_and_cell(display_path(error.filename))
        place = Location(path, error.lineno or 1, column, error.end_lineno or 0, error.end_offset or 0, cell=cell)
        hint = hint or "correct the syntax"
    elif isinstance(error, ModuleNotFoundError):
        hint = hint or f"install what provides {error.name} in the environment that gradcheck runs in, or run gradcheck from its folder"
    elif isinstance(error, SystemExit):
        message = f"{what}: it exits by itself (SystemExit: {error.code})"
        next_step = "gradcheck imports the file: put what runs under `if __name__ == '__main__':`, so that importing only builds the model"
        return TargetError(message, hint=hint or next_step, location=place)
    text = one_line(str(error))
    if _SHADOWED.search(text):
        hint = "a file of yours is named gradcheck.py, or a folder gradcheck, like this package: rename it"
    first = f"{type(error).__name__}: {text}" if text else type(error).__name__
    return TargetError(f"{what}: {first}", hint=hint or "correct it, or name another target", location=place)
