"""How the gradient of the loss travels back through time, in fused recurrent layers and in loops written by hand.

One pass on a few samples: fused layers are hooked, loops are found in the autograd graph (measure/loops.py), and one
backward pass of the loss itself gives the gradient at every time step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from gradcheck.instrument.graph_structure import Graph
from gradcheck.measure.checks import handwritten_rnn
from gradcheck.measure.checks.context import CheckContext
from gradcheck.types.checks import Recurrence
from gradcheck.workload.device import wide
from gradcheck.workload.step import TARGET_NAMES
from gradcheck.workload.training_copy import TrainingCopy, some_samples

SAMPLES = 16
FEW_SAMPLES = 4  # for models without a recurrent layer of torch; most of them have no recurrence at all
FEWEST_STEPS = handwritten_rnn.FEWEST_STEPS
EVEN = 1.0  # decades between the ends; with fewer, every step counts as seen
WIDEST = 1024  # units; eigenvalues of larger matrices take longer than a training step


def recurrences(context: CheckContext) -> tuple[Recurrence, ...] | None:
    """The recurrences of the model, in the order in which they run; None without any."""
    copy = context.fork()
    likely = any(isinstance(m, (nn.RNNBase, nn.RNNCellBase)) for m in copy.model.modules())
    batch = some_samples(context.workload, SAMPLES if likely else FEW_SAMPLES)
    watch = _Watch(copy.model)
    try:
        loss, leaves = _forward(copy, batch, watch)
    except Exception:  # the model does not accept inputs that require a gradient
        copy = context.fork()
        watch = _Watch(copy.model)
        with watch:
            loss, leaves = copy.loss(batch), ()
    if loss.grad_fn is None:
        return None
    graph = Graph(loss.grad_fn)
    found = handwritten_rnn.find(graph, copy.model, exclude=(*leaves, *watch.weights()))
    if not found and not watch.calls:
        return None
    for call in watch.calls:
        call.project()
        call.listen()
    for loop in found:
        loop.listen()
    loss.backward()
    names = {id(m): name for name, m in copy.model.named_modules()}
    records = [_fused(call, names[id(call.module)], context) for call in watch.calls]
    records += [_written(loop, copy.model, context) for loop in found]
    return tuple(n for n in records if n is not None) or None


def _forward(copy: TrainingCopy, batch: Any, watch: _Watch) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """The loss of a batch whose float inputs require a gradient, so that the graph shows where they enter; and those inputs."""
    leaves: list[torch.Tensor] = []
    batch = _differentiable(batch, leaves, top=True)
    with watch:
        return copy.loss(batch), tuple(leaves)


def _differentiable(value: Any, leaves: list[torch.Tensor], *, top: bool = False) -> Any:
    if isinstance(value, torch.Tensor):
        if not value.is_floating_point():
            return value
        leaves.append(value.detach().requires_grad_())
        return leaves[-1].clone()  # a leaf could not be changed in place
    if isinstance(value, dict):
        return {k: v if top and k in TARGET_NAMES else _differentiable(v, leaves) for k, v in value.items()}
    if isinstance(value, (list, tuple)) and not isinstance(value, PackedSequence) and not hasattr(value, "_fields"):
        inputs = len(value) - 1 if top and len(value) > 1 else len(value)  # the last of a batch is its target
        return type(value)([*(_differentiable(v, leaves) for v in value[:inputs]), *value[inputs:]])
    return value


# ---------------------------------------------------------------------------------- fused


@dataclass
class _Call:
    """One call of a fused layer on a sequence. `inputs` is an alias of what it was given; `output` what it returned."""

    module: nn.RNNBase
    inputs: torch.Tensor
    packed: PackedSequence | None
    output: Any = None
    arrived: list[torch.Tensor] = field(default_factory=list)  # gradient of the loss at the inputs
    seen: list[torch.Tensor] = field(default_factory=list)  # and at the outputs, where the loss sees them
    projected: torch.Tensor | None = None  # gradient of the last step's output at the inputs

    def profile(self, gradient: torch.Tensor) -> list[float]:
        """Gradients [steps, samples, ...] in any layout -> their 2-norms by step, aligned at each sample's last step."""
        if self.packed is not None:
            gradient = pad_packed_sequence(self._like(self.packed, gradient))[0]
        elif gradient.dim() == 2:
            gradient = gradient[:, None]
        elif self.module.batch_first:
            gradient = gradient.transpose(0, 1)
        return aligned(wide(gradient).norm(dim=2))

    @staticmethod
    def _like(packed: PackedSequence, data: torch.Tensor) -> PackedSequence:
        return PackedSequence(data, packed.batch_sizes, packed.sorted_indices, packed.unsorted_indices)

    def listen(self) -> None:
        """Makes the next backward pass leave the gradients at inputs and outputs."""
        output = self.output.data if isinstance(self.output, PackedSequence) else self.output
        self.inputs.register_hook(self.arrived.append)
        output.register_hook(self.seen.append)

    def project(self) -> None:
        """The gradient of a random direction of the last step's output at the inputs, for losses that see every step."""
        if self.packed is not None or not isinstance(self.output, torch.Tensor) or self.output.grad_fn is None:
            return
        last = self.output[:, -1] if self.module.batch_first and self.output.dim() == 3 else self.output[-1]
        if self.module.bidirectional:
            last = last[..., : last.shape[-1] // 2]
        direction = torch.randn(last.shape, dtype=last.dtype, generator=torch.Generator().manual_seed(0), device="cpu").to(last.device)
        (self.projected,) = torch.autograd.grad(last, self.inputs, direction, retain_graph=True)


class _Watch:
    """Hooks on the fused recurrent layers of a copy that record each call on a sequence of some length."""

    def __init__(self, model: nn.Module) -> None:
        self.layers = [m for m in model.modules() if isinstance(m, nn.RNNBase)]
        self.longest: dict[nn.RNNBase, _Call] = {}
        self._open: list[_Call] = []
        self._handles: list[Any] = []

    @property
    def calls(self) -> list[_Call]:
        return list(self.longest.values())

    def weights(self) -> tuple[torch.Tensor, ...]:
        """Parameters of the layers that ran on sequences: what happens inside them is not a loop of the user's."""
        return tuple(p for m in self.longest for p in m.parameters())

    def __enter__(self) -> _Watch:
        for m in self.layers:
            self._handles.append(m.register_forward_pre_hook(self._before, with_kwargs=True))
            self._handles.append(m.register_forward_hook(self._after))
        return self

    def __exit__(self, *_: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        given = args[0] if args else kwargs["input"]
        packed = given if isinstance(given, PackedSequence) else None
        data = given.data if packed is not None else given
        alias = data.view_as(data) if data.requires_grad else data.detach().requires_grad_()
        call = _Call(module, alias, packed)
        self._open.append(call)
        new = _Call._like(packed, alias) if packed is not None else alias
        return ((new, *args[1:]), kwargs) if args else (args, {**kwargs, "input": new})

    def _after(self, module: Any, args: Any, output: Any) -> None:
        call = self._open.pop()
        steps = _length(call)
        before = self.longest.get(module)
        if steps < FEWEST_STEPS or (before is not None and _length(before) >= steps) or not torch.is_grad_enabled():
            return
        call.output = output[0]
        tensor = output[0].data if isinstance(output[0], PackedSequence) else output[0]
        if tensor.grad_fn is None:
            return
        self.longest[module] = call


def _length(call: _Call) -> int:
    if call.packed is not None:
        return int(call.packed.batch_sizes.numel())
    return call.inputs.shape[1 if call.module.batch_first and call.inputs.dim() == 3 else 0]


def aligned(norms: torch.Tensor) -> list[float]:
    """Norms [steps, samples] -> root mean square over samples by step, counted back from each sample's last step that counts.

    What follows a sample's last non-zero entry is padding. The length is the median sample's.
    """
    norms = torch.where(torch.isfinite(norms), norms, torch.zeros_like(norms)).cpu()
    lengths = [int(column.nonzero()[-1]) + 1 if bool(column.any()) else 0 for column in norms.T]
    real = sorted(n for n in lengths if n)
    if not real:
        return []
    squares, counts = torch.zeros(max(real), dtype=norms.dtype, device="cpu"), torch.zeros(max(real), dtype=norms.dtype, device="cpu")
    for n, column in zip(lengths, norms.T, strict=True):
        squares[:n] += column[:n].flip(0).square()  # from the last step back
        counts[:n] += 1
    steps = real[len(real) // 2]
    return (squares / counts).sqrt()[:steps].flip(0).tolist()


def farthest_first(profile: Sequence[float], *, both_ways: bool) -> list[float]:
    """The steps from the one that the loss sees least to the one that it sees best.

    A layer that reads both ways sees both ends well: what counts is the way from its blind spot to the better end.
    """
    values = list(profile)
    if not both_ways or len(values) < 2:
        return values
    if values[0] > values[-1]:
        values.reverse()
    return values[values.index(min(values)) :]


def _fused(call: _Call, name: str, context: CheckContext) -> Recurrence | None:
    both = call.module.bidirectional
    profile = call.profile(_total(call.arrived)) if call.arrived else []
    seen = call.profile(_total(call.seen)) if call.seen else []
    every = sum(x > 0 for x in seen) > len(seen) / 2 and decades(farthest_first(profile, both_ways=both)) <= EVEN
    if every and call.projected is not None:
        profile = call.profile(call.projected)
    profile = farthest_first(profile, both_ways=both and not every)
    if not profile or not any(profile):
        return None
    kind = {"RNN_TANH": "RNN", "RNN_RELU": "RNN"}.get(call.module.mode, call.module.mode)
    recurrent = [p for n, p in call.module.named_parameters() if n.startswith("weight_hh")]
    return Recurrence(
        name,
        kind,
        context.sites.get(name),
        _length(call),
        call.module.hidden_size,
        tuple(profile),
        slope(profile),
        every,
        spectral_radius(recurrent) if kind == "RNN" else None,
        forget_bias(call.module) if kind == "LSTM" else None,
    )


def _total(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.stack(list(parts)).sum(0) if len(parts) > 1 else parts[0]


# -------------------------------------------------------------------------------- written


def _written(loop: handwritten_rnn.RecurrentChain, model: nn.Module, context: CheckContext) -> Recurrence | None:
    profile = loop.norms()
    while profile and profile[-1] == 0:
        profile.pop()  # padding
    if len(profile) < FEWEST_STEPS:
        return None
    module = dict(model.named_modules()).get(loop.owner)
    squares = [p for p in loop.parameters if p.dim() == 2 and p.shape[0] == p.shape[1]]
    simple = len(squares) == 1 and all(p.dim() < 2 or p is squares[0] for p in loop.parameters)
    return Recurrence(
        loop.owner,
        type(module).__name__ if module is not None else "loop",
        context.sites.get(loop.owner),
        loop.steps,
        min((min(p.shape) for p in loop.parameters if p.dim() == 2), default=None),
        tuple(profile),
        slope(profile),
        loop.seen_at_every_step and decades(profile) <= EVEN,
        spectral_radius(squares) if simple else None,
        forget_bias(module) if isinstance(module, (nn.LSTM, nn.LSTMCell)) else None,
    )


# -------------------------------------------------------------------------------- numbers


def decades(profile: Sequence[float]) -> float:
    """log10 of the last gradient over the first; zeros count as the smallest float."""
    return math.log10(max(profile[-1], 1e-38) / max(profile[0], 1e-38)) if profile else 0.0


def slope(profile: Sequence[float]) -> float | None:
    """Least-squares slope of log10 of the gradient over steps, without steps that underflowed; None for fewer than three."""
    points = [(t, math.log10(g)) for t, g in enumerate(profile) if g > 0]
    if len(points) < 3:
        return None
    middle = sum(t for t, _ in points) / len(points)
    spread = sum((t - middle) ** 2 for t, _ in points)
    return sum((t - middle) * y for t, y in points) / spread


def spectral_radius(weights: Sequence[torch.Tensor]) -> float | None:
    """Largest |eigenvalue| of recurrent weights [units, units]: of the layer or direction that is furthest from 1."""
    if not weights or any(w.dim() != 2 or w.shape[0] != w.shape[1] or w.shape[0] > WIDEST for w in weights):
        return None
    radii = [float(torch.linalg.eigvals(w.detach().cpu().double()).abs().max()) for w in weights]
    return max(radii, key=lambda r: abs(math.log(max(r, 1e-12))))


def forget_bias(module: nn.Module) -> float | None:
    """Mean of the forget gate's bias, input and hidden part added: of the layer or direction where it is lowest."""
    hidden = getattr(module, "hidden_size", 0)
    biases = {n: p.detach() for n, p in module.named_parameters() if n.startswith("bias_ih")}
    means = []
    for name, p in biases.items():
        other = getattr(module, name.replace("bias_ih", "bias_hh"))
        means.append(float((p + other.detach())[hidden : 2 * hidden].mean()))
    return min(means, default=None)
