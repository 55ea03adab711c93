"""The user's code that is running: the frame that called into gradcheck, and the names under which it knows an object."""

import linecache
import sys
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any

import torch
from torch import nn

from gradcheck.types.location import Location
from gradcheck.workload.assignments import first_assignment
from gradcheck.workload.source_sites import location_of_frame

_NAMED_FRAMES = 30  # how far up the stack to look for variables
_RECORDING = ("gradcheck.bisect", "gradcheck.capture", "gradcheck.instrument", "gradcheck.live")


def outside() -> FrameType | None:
    """The frame that called into the code that listens."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_globals.get("__name__", "").startswith(_RECORDING):
        frame = frame.f_back
    return frame


def here() -> Location | None:
    """The expression of the user's that is running."""
    return location_of_frame(outside())


def is_wrapper(module: nn.Module) -> bool:
    """Whether it only wraps another module, which it compiles or copies to several devices."""
    return type(module).__name__ == "OptimizedModule" or isinstance(module, (nn.DataParallel, nn.parallel.DistributedDataParallel))


def is_program(module: nn.Module) -> bool:
    """Whether it stands for no model of its own: a wrapper, or one whose forward takes the training step itself, as MAML's do."""
    traced = isinstance(module, torch.jit.ScriptModule)  # whose class gives no function
    names = () if traced else getattr(getattr(type(module).forward, "__code__", None), "co_names", ())
    return is_wrapper(module) or ("backward" in names and "step" in names)


def variable_of(wanted: Any, *, outermost: bool = False) -> str:
    """The name under which the user's running code knows an object, the innermost function first; "" when it is not found."""
    frame: FrameType | None = outside()
    found = ""
    for _ in range(_NAMED_FRAMES):
        if frame is None or (found and not outermost):
            break
        found = next((name for name, value in _variables(frame) if _is(value, wanted)), found)
        frame = frame.f_back
    return found


def place_of_variable(wanted: torch.Tensor) -> Location | None:
    """Where the running user's code first gives a variable that holds a tensor its value."""
    frame: FrameType | None = outside()
    found = None
    for _ in range(_NAMED_FRAMES):
        if frame is None:
            break
        names = [name for name, value in _variables(frame) if value is wanted]
        places = (first_assignment(frame.f_code.co_filename, name) for name in names)
        found = next((p for p in places if p is not None), found)
        frame = frame.f_back
    return found


def names_in_program(names: Sequence[str]) -> bool:
    """Whether a file of the code that is running, torch's and gradcheck's left out, has one of these names in it, or cannot be read."""
    frame: FrameType | None = outside()
    files = set()
    while frame is not None:
        if not frame.f_globals.get("__name__", "").startswith(("torch", "gradcheck", "runpy")):
            files.add(frame.f_code.co_filename)
        frame = frame.f_back
    texts = ["".join(linecache.getlines(file)) for file in files]
    return not any(texts) or any(name in text for text in texts for name in names)


def _is(value: Any, wanted: Any) -> bool:
    inner = value._modules.values() if isinstance(value, nn.Module) and is_wrapper(value) else ()
    return value is wanted or any(v is wanted for v in inner)


def _variables(frame: FrameType) -> Iterator[tuple[str, Any]]:
    """Local variables of a frame, the attributes of `self`, and module-level ones."""
    if frame.f_globals.get("__name__", "").startswith(("torch", "gradcheck")):
        return
    for name, value in list(frame.f_locals.items()):
        if name != "self" and name.isidentifier():
            yield name, value
    own = frame.f_locals.get("self")
    if own is not None and hasattr(own, "__dict__"):
        found = {**vars(own), **(own._modules if isinstance(own, nn.Module) else {})}
        yield from ((name, value) for name, value in found.items() if name.isidentifier())
    if frame.f_locals is not frame.f_globals:
        yield from ((n, v) for n, v in list(frame.f_globals.items()) if n.isidentifier())
