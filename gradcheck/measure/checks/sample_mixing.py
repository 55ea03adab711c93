"""Which operation lets samples of a batch meet: two passes that differ in some samples, compared operation by operation."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.types.location import Location
from gradcheck.workload.device import wide
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in

State = Literal["same", "own", "mixed", "spread"]  # spread: changed, and without an axis for the samples

# Statistics over the batch, on which hand-written normalizations and discriminators rest.
STATISTICS = frozenset(
    "mean var std var_mean std_mean sum nansum norm vector_norm batch_norm native_batch_norm instance_norm max min amax amin aminmax "
    "median nanmedian mode quantile logsumexp".split()
)
RANKS = frozenset("sort argsort topk kthvalue unique unique_consecutive bincount histc nonzero searchsorted bucketize".split())
# Operations that move entries and compute nothing.
MOVES = frozenset(
    "view reshape flatten unflatten permute transpose swapaxes t movedim __getitem__ __get__ roll flip expand repeat tile stack cat chunk "
    "split contiguous squeeze unsqueeze unbind index_select gather as_strided unfold resize_".split()
)
PRODUCTS = frozenset(
    "matmul __matmul__ bmm mm baddbmm addmm einsum linear scaled_dot_product_attention multi_head_attention_forward "
    "_native_multi_head_attention tensordot _transformer_encoder_layer_fwd".split()
)
ROUNDING = 1e-5  # relative change that float32 explains


@dataclass(frozen=True)
class Culprit:
    operation: str
    layer: str
    site: Location | None
    carries: bool  # gradient passes through it
    floating: bool
    shape: tuple[int, ...]  # of its first argument

    @property
    def meant(self) -> Literal["statistics", "relation", "routing"] | None:
        """What such mixing is usually for. Matrix products are judged by `relates`."""
        name = self.operation.rstrip("_")
        if name in STATISTICS:
            return "statistics"
        if self.operation in MOVES or name in MOVES:
            return None
        return "routing" if name in RANKS or not self.floating or not self.carries else None


class Seen(ActivationRecorder, ABC):
    """Sees every operation and the module that it runs in; takes no statistics."""

    def _module_call(self, *details: Any) -> None:
        """Modules are only followed."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if self.recording and self.stack and name not in ("size", "dim", "__setattr__", "register_hook"):
            self.seen_operation(name, (args, kwargs or {}), output)
        return output

    @abstractmethod
    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        """An operation has run: its name, its arguments, its result."""


class _Remembering(Seen):
    """The results of every operation, in order."""

    def __init__(self, names: Mapping[int, str]) -> None:
        super().__init__(names)
        self.results: list[tuple[str, list[torch.Tensor]]] = []

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        self.results.append((name, [t.detach().clone() for t in tensors_in(output)]))


class _Comparing(Seen):
    """Holds the results against those of another pass, up to the first in which samples have met."""

    def __init__(
        self, names: Mapping[int, str], before: Sequence[tuple[str, list[torch.Tensor]]], count: int, replaced: Sequence[int]
    ) -> None:
        super().__init__(names)
        self.before, self.count = before, count
        self.kept = [i for i in range(count) if i not in replaced]
        self.index = 0
        self.spread: dict[int, tuple[torch.Tensor, Culprit]] = {}
        self.culprit: Culprit | None = None
        self.lost = False  # the passes took different ways

    def seen_operation(self, name: str, given: Any, output: Any) -> None:
        if self.lost or self.culprit is not None:
            return
        expected = self.before[self.index] if self.index < len(self.before) else ("", [])
        self.index += 1
        results = list(tensors_in(output))
        self.lost = expected[0] != name or [t.shape for t in expected[1]] != [t.shape for t in results]
        if self.lost:
            return
        sources = list(tensors_in(given))
        origin = next((self.spread[id(t)][1] for t in sources if id(t) in self.spread), None)
        for old, new in zip(expected[1], results, strict=True):
            state = self._state(old, new)
            if state in ("mixed", "spread"):
                blamed = origin or self._blame(name, sources, new)
                if state == "mixed":
                    self.culprit = blamed
                    return
                self.spread[id(new)] = (new, blamed)

    def _blame(self, name: str, sources: Sequence[torch.Tensor], result: torch.Tensor) -> Culprit:
        shape = tuple(sources[0].shape) if sources else ()
        floating = result.is_floating_point() or result.is_complex()
        return Culprit(name, self.module_name, location_of_frame(caller()), result.requires_grad, floating, shape)

    def _state(self, old: torch.Tensor, new: torch.Tensor) -> State:
        a, b = (torch.nan_to_num(wide(t.detach())) if not t.is_complex() else wide(torch.view_as_real(t.detach())) for t in (old, new))
        size = float(a.abs().max()) if a.numel() else 0.0
        differs = (a - b).abs() > ROUNDING * max(size, 1e-30)
        if not bool(differs.any()):
            return "same"
        axes = [k for k, s in enumerate(a.shape) if s == self.count]
        if len(axes) > 1:
            return "own"  # samples against samples: what becomes of that decides
        if axes:
            others = differs.index_select(axes[0], torch.tensor(self.kept, device=a.device))
            return "mixed" if bool(others.any()) else "own"
        if a.dim() and a.shape[0] and a.shape[0] % self.count == 0:
            inner = a.shape[0] // self.count
            by_sample = differs.reshape(self.count, inner, -1)[self.kept], differs.reshape(inner, self.count, -1)[:, self.kept]
            return "mixed" if all(bool(d.any()) for d in by_sample) else "own"
        return "spread"


def culprit(model: nn.Module, before: Any, after: Any, count: int, replaced: Sequence[int], dice: Any) -> Culprit | None:
    """The first operation whose result for a sample depends on others, from the arguments of two passes (`rows.Inputs`)."""
    names = {id(m): name for name, m in model.named_modules()}
    remembering = _Remembering(names)
    before, after = before.requiring_grad(), after.requiring_grad()
    with torch.enable_grad():
        dice.throw()
        with remembering:
            before.run(model)
        comparing = _Comparing(names, remembering.results, count, replaced)
        dice.throw()
        with comparing:
            after.run(model)
    return comparing.culprit


def relates(found: Culprit, count: int) -> bool:
    """Whether a product of matrices relates whole samples to each other, rather than positions of other samples by mistake.

    It is a mistake if there are also positions to work on: [samples, positions, features] where [positions, samples, features]
    is expected.
    """
    if found.operation not in PRODUCTS:
        return False
    inner = [s for s in found.shape[:-1] if s != count]
    return all(s == 1 for s in inner)
