"""What can be seen of compiled layers without changing what is compiled: what they are given and give back, and the gradient at that.

A hook of a module would be compiled along. What stands around the compiled function is replaced instead: torch calls it from outside
the graph, and guards nothing of it. Calls from inside another compiled function go by untouched.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.analysis.wording import layers_in_words
from gradcheck.instrument.activation_recorder import Call
from gradcheck.live.models import compiled_modules
from gradcheck.live.taps import LiveTaps

INSIDE = "_orig_mod"  # of a module that `torch.compile` returned: what was compiled


class EdgeTaps(LiveTaps):
    """Told of calls by Edges; no hook of a module is put in."""

    def start(self) -> None:
        self.recording = self.on = True

    def stop(self) -> None:
        self.recording = self.on = False

    def _module_call(self, module: nn.Module, name: str, role: Any, inputs: list[torch.Tensor], tensor: torch.Tensor) -> None:
        self._record(Call(name, f"compiled {role.type}", role.kind, module, None, None, tuple(tensor.shape)), tensor)

    def _note_batch(self, args: Any, kwargs: Any) -> None:
        if not self.module_name:  # what a part of the model is given tells nothing of the data
            super()._note_batch(args, kwargs)


class Edges:
    """Of the compiled layers of a model. `taps`: those of a measured step, None in between."""

    def __init__(self) -> None:
        self.taps: EdgeTaps | None = None
        self.names: dict[int, str] = {}  # id(module) -> name
        self._replaced: list[tuple[dict[str, Any], str, Any]] = []

    def install(self, model: nn.Module) -> None:
        for name, module, holder, key in list(compiled_calls(model)):
            self.names[id(module)] = name
            self._replaced.append((holder, key, holder[key]))
            holder[key] = self._around(module, holder[key])

    def remove(self) -> None:
        for holder, key, original in self._replaced:
            holder[key] = original
        self._replaced.clear()
        self.taps = None

    def _around(self, module: nn.Module, original: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            taps = self.taps
            if torch.compiler.is_compiling() or taps is None or not taps.recording:
                return original(*args, **kwargs)
            taps._before(module, args)
            try:
                output = original(*args, **kwargs)
            except BaseException:
                taps.stack.clear()
                raise
            taps._after(module, args, kwargs, output)
            return output

        return call


def compiled_calls(model: nn.Module) -> Iterator[tuple[str, nn.Module, dict[str, Any], str]]:
    """Name, module, and where the compiled function is kept, of the outermost compiled layers. None where TORCH_COMPILE_DISABLE=1 lets them
    run as they are."""
    if getattr(sys.modules.get("torch._dynamo.config"), "disable", False):
        return
    around = [x for x in compiled_modules() if "forward" in vars(x)]
    inside: list[str] = []
    for path, module in model.named_modules():
        name = ".".join(part for part in path.split(".") if part != INSIDE)
        if any(name != n and (not n or name.startswith(f"{n}.")) for n in inside):
            continue
        holders = [(vars(x), "forward") for x in around if x._modules.get(INSIDE) is module]
        if module._compiled_call_impl is not None:
            holders.append((vars(module), "_compiled_call_impl"))
        inside += [name] if holders else []
        yield from ((name, module, holder, key) for holder, key in holders)


def untapped(compiled: Sequence[str]) -> str:
    """Why layers are not looked at: `compiled` are the names of those that torch.compile has compiled, "" for the model."""
    what = "the model" if "" in compiled else layers_in_words(compiled)
    return f"torch.compile has compiled {what}, and the layers of the model were not looked at: a hook would be compiled, too"
