"""Custom autograd Functions: their calls in one pass, and whether the backward of a call is the derivative of its forward."""

import math
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.autograd import Function

from gradcheck.types.checks import Intended
from gradcheck.types.location import Location
from gradcheck.workload.rng import seed_all
from gradcheck.workload.source_sites import location_of_frame

STEPS = (1e-6, 1e-7, 1e-8, 1e-5, 1e-4, 1e-3)  # of a central difference, relative to the size of what is moved; E6: 1e-6 is best
ALIKE = 3  # neighbouring steps that have to agree before they are believed
CLEAR = 1e-4  # rounding error of a difference, relative to it, up to which it counts
FINE = 1e-5  # disagreement that rounding and curvature explain (E6: correct networks reach 4e-8)
ROUNDING = 1e-15  # relative error of a float64 sum of many terms
CALLS = 2  # calls of one Function in one layer that are looked at
MOST_CALLS = 12
JUMPS = (1e-2, 3e-3, 1e-3, 1e-4)  # steps at which a discontinuous function moves by as much as at any other
WAYS = 12  # directions that a jump is looked for in: a small tensor rarely crosses one
STEEPER = 3.0  # times the slope nearby: more than any smooth function shows over such steps


@dataclass
class DerivativeComparison:
    """Central differences at several steps against the derivative that autograd gives for the same direction."""

    analytic: float
    differences: dict[float, tuple[float, float]] = field(default_factory=dict)  # step -> difference, its rounding error

    def add(self, step: float, difference: float, noise: float) -> None:
        self.differences[step] = difference, 10 * noise

    @property
    def disagreement(self) -> float | None:
        """The smallest |difference - analytic| / the larger of both.

        Where all steps speak against autograd, three neighbouring ones have to agree with each other to a tenth, and far better
        than with it: differences that follow the step show how rough the function is. None when there are no such.
        """
        steps = sorted(self.differences)
        clear = [s for s in steps if self.differences[s][1] <= CLEAR * self._larger(s)]
        ratios = {s: self._gap(s) / self._larger(s) for s in clear}
        if ratios and min(ratios.values()) <= FINE:
            return min(ratios.values())
        if not clear:
            return 0.0 if steps and all(self._gap(s) == 0 for s in steps) else None
        found = []
        for k in range(len(clear) - ALIKE + 1):
            window = clear[k : k + ALIKE]
            values = [self.differences[s][0] for s in window]
            spread = max(values) - min(values) - max(self.differences[s][1] for s in window)
            if spread <= 0.1 * min(max(map(abs, values)), *(self._gap(s) for s in window)):
                found.append(min(ratios[s] for s in window))
        return min(found, default=None)

    def _larger(self, step: float) -> float:
        return max(abs(self.differences[step][0]), abs(self.analytic))

    def _gap(self, step: float) -> float:
        difference, noise = self.differences[step]
        return max(0.0, abs(difference - self.analytic) - noise)


# ------------------------------------------------------------------------- the calls


@dataclass(eq=False)
class FunctionCall:
    """One call of a custom Function. Tensors among `args` are copies without a graph; `moves`: how each one moves with the weights."""

    cls: type[Function]
    layer: str
    site: Location | None
    args: tuple[Any, ...]
    needs: tuple[bool, ...]  # arguments that gradient is sent to
    moves: list[torch.Tensor | None] = field(default_factory=list)


def name_of(cls: type[Function]) -> str:
    """A readable name; operators registered with torch.library have their own."""
    prefix = "GeneratedBackwardFor_"
    if not cls.__name__.startswith(prefix):
        return cls.__name__
    space, _, rest = cls.__name__.removeprefix(prefix).partition("_")
    return f"{space}::{rest.removesuffix('_default')}"


def custom_functions() -> list[type[Function]]:
    """All Functions that are not torch's own."""
    found: list[type[Function]] = []
    waiting: list[type[Function]] = [Function]
    while waiting:
        for cls in waiting.pop().__subclasses__():
            waiting.append(cls)
            generated = cls.__name__.startswith("GeneratedBackwardFor_")
            if (generated or not cls.__module__.startswith("torch.")) and cls not in found:
                found.append(cls)
    return found


class CallRecorder:
    """Sees the calls of custom Functions. `layer()` names the module that is running."""

    def __init__(self, layer: Callable[[], str]) -> None:
        self.layer = layer
        self.calls: list[FunctionCall] = []
        self.sneaking: set[str] = set()  # Functions that write to their arguments without saying so: which gradient is right is not known
        self.depth = 0  # Functions that are running

    @contextmanager
    def recording(self) -> Iterator[None]:
        """While active, calls are appended to `calls`; also those of classes that are made meanwhile."""
        with ExitStack() as stack:

            def watch(cls: type[Function]) -> None:
                if cls.forward is not Function.forward:
                    stack.enter_context(_replaced(cls, self._watched(cls, cls.forward)))

            for known in custom_functions():
                watch(known)
            type.__setattr__(Function, "__init_subclass__", classmethod(watch))
            try:
                yield
            finally:
                type.__delattr__(Function, "__init_subclass__")

    def _watched(self, cls: type[Function], forward: Callable[..., Any]) -> Callable[..., Any]:
        separate = cls.setup_context is not Function.setup_context  # then forward does not get the context

        def watched(*args: Any, **kwargs: Any) -> Any:
            given, call = args if separate else args[1:], None
            with suppress(Exception):  # what cannot be kept is not looked at
                call = self._note(cls, given)
            self.depth += 1
            try:
                return forward(*args, **kwargs)
            finally:
                self.depth -= 1
                said = () if separate else getattr(args[0], "dirty_tensors", None) or ()
                if call is not None and any(_changed(a, b) for a, b in zip(given, call.args, strict=True) if all(a is not s for s in said)):
                    self.sneaking.add(cls.__qualname__)
                    self.calls = [c for c in self.calls if c.cls.__qualname__ != cls.__qualname__]

        return watched

    def _note(self, cls: type[Function], args: tuple[Any, ...]) -> FunctionCall | None:
        layer = self.layer()
        if cls.__qualname__ in self.sneaking or len(self.calls) >= MOST_CALLS:
            return None
        if sum(c.cls.__qualname__ == cls.__qualname__ and c.layer == layer for c in self.calls) >= CALLS:
            return None
        needs = tuple(isinstance(a, torch.Tensor) and a.requires_grad for a in args)
        kept = tuple(a.detach().clone() if isinstance(a, torch.Tensor) else a for a in args)
        call = FunctionCall(cls, layer, location_of_frame(sys._getframe(2)), kept, needs)
        self.calls.append(call)
        return call


def _changed(argument: Any, before: Any) -> bool:
    if not isinstance(argument, torch.Tensor):
        return False
    now = argument.detach()
    return now.shape != before.shape or not bool(((now == before) | ((now != now) & (before != before))).all())


@contextmanager
def _replaced(cls: type[Function], forward: Callable[..., Any]) -> Iterator[None]:
    own = cls.__dict__.get("forward")
    type.__setattr__(cls, "forward", staticmethod(forward))
    try:
        yield
    finally:
        if own is None:
            type.__delattr__(cls, "forward")
        else:
            type.__setattr__(cls, "forward", own)


def add_moves(calls: Sequence[FunctionCall], forth: Sequence[FunctionCall], back: Sequence[FunctionCall]) -> None:
    """How each argument moves with the weights, from the calls of two passes with the weights moved back and forth.

    An argument moves only as its producers allow: zeros of a ReLU stay zeros, and no kink is hit by accident.
    """
    for i, call in enumerate(calls):
        others = (forth[i], back[i]) if i < len(forth) and i < len(back) else None
        call.moves = [_move(call, k, others) if wanted else None for k, wanted in enumerate(call.needs)]


def _move(call: FunctionCall, index: int, others: tuple[FunctionCall, FunctionCall] | None) -> torch.Tensor | None:
    here = call.args[index]
    if others is None or any(o.cls.__qualname__ != call.cls.__qualname__ or _shape(o.args[index]) != here.shape for o in others):
        move = here * torch.randn(here.shape, dtype=here.dtype, device=here.device)  # zeros stay zeros
    else:
        move = others[0].args[index] - others[1].args[index]
    size = _rms(move)
    return move * ((_rms(here) or 1.0) / size) if size > 0 and torch.isfinite(move).all() else None


def _shape(value: Any) -> torch.Size | None:
    return value.shape if isinstance(value, torch.Tensor) else None


def _rms(x: torch.Tensor) -> float:
    return float(x.norm()) / max(1, x.numel()) ** 0.5


# ------------------------------------------------------------------- what they are like


@dataclass(frozen=True)
class Tested:
    """A call, how far its backward is off, and what it seems to be meant for. `error` None: it could not be told."""

    call: FunctionCall
    error: float | None
    intended: Intended | None = None
    loss: float | None = None  # its value, where it is right as long as the gradient that comes in is 1: it is made in forward


def tested(call: FunctionCall, seed: int) -> Tested:
    """Holds the backward of one call against central differences of its forward, argument by argument."""
    case = _Case(call, seed)
    worst = case.worst()
    if worst is None or worst <= FINE:
        return Tested(call, worst)
    if not case.is_deaf():
        return Tested(call, worst, case.intention())
    if any(w.numel() > 1 for w in case.weights):
        return Tested(call, worst)
    case.weights = [torch.ones_like(w) for w in case.weights]
    return Tested(call, worst, loss=case.total() if (case.worst() or 0.0) <= FINE else None)


class _Case:
    """One call that can be made again."""

    def __init__(self, call: FunctionCall, seed: int) -> None:
        self.call, self.seed = call, seed
        self.gradients = self._backward(1.0)

    def _backward(self, factor: float) -> list[torch.Tensor | None]:
        """The gradients of the arguments, for an incoming gradient of random numbers times a factor."""
        leaves = [a.clone().requires_grad_() if n else None for a, n in zip(self.call.args, self.call.needs, strict=True)]
        with torch.enable_grad():
            outputs = self._apply([a if leaf is None else leaf.clone() for a, leaf in zip(self.call.args, leaves, strict=True)])
            live = [y for y in outputs if y.requires_grad]
            generator = torch.Generator().manual_seed(self.seed)
            self.weights = [torch.randn(y.shape, generator=generator, device="cpu").to(y) for y in live]
            self.live = [k for k, y in enumerate(outputs) if y.requires_grad]
            wanted = [leaf for leaf in leaves if leaf is not None]
            incoming = [factor * w for w in self.weights]
            found = iter(torch.autograd.grad(live, wanted, incoming, allow_unused=True) if live else [None] * len(wanted))
        return [None if leaf is None else _or_zeros(next(found), leaf) for leaf in leaves]

    def is_deaf(self) -> bool:
        """Whether an argument gets the same gradient whatever comes in."""
        pairs = zip(self.gradients, self._backward(-2.0), strict=True)
        return any(a is not None and b is not None and bool(a.any()) and torch.equal(a, b) for a, b in pairs)

    def _apply(self, args: Sequence[Any]) -> list[torch.Tensor]:
        seed_all(self.seed)
        result = self.call.cls.apply(*args)
        outputs = result if isinstance(result, (tuple, list)) else (result,)
        return [y for y in outputs if isinstance(y, torch.Tensor)]

    def _outputs(self, index: int, change: torch.Tensor | None = None) -> list[torch.Tensor]:
        """The outputs that carry gradient, with one argument changed."""
        args = [a.clone() if isinstance(a, torch.Tensor) else a for a in self.call.args]
        if change is not None:
            args[index] = args[index] + change
        with torch.no_grad():
            outputs = self._apply(args)
        return [outputs[k].detach().clone() for k in self.live]

    def total(self) -> float:
        return sum(float(y.sum()) for y in self._outputs(0))

    def worst(self) -> float | None:
        errors = (self._error(index, move) for index, move in enumerate(self.call.moves) if move is not None)
        return max((e for e in errors if e is not None), default=None)

    def _error(self, index: int, move: torch.Tensor) -> float | None:
        gradient = self.gradients[index]
        assert gradient is not None
        analytic = float((gradient.conj() * move).real.sum())
        compared = DerivativeComparison(analytic)
        for step in STEPS:
            forth, back = self._outputs(index, step * move), self._outputs(index, -step * move)
            change = sum(float((w.conj() * (a - b)).real.sum()) for w, a, b in zip(self.weights, forth, back, strict=True))
            size = sum(float(w.norm() * a.norm()) for w, a in zip(self.weights, forth, strict=True))
            if not math.isfinite(change):
                return None
            compared.add(step, change / (2 * step), ROUNDING * size / step)
            if compared.disagreement is not None:
                break
        return compared.disagreement

    def intention(self) -> Intended | None:
        """What the backward is for, judged by what the forward does with its arguments and the backward with the gradient."""
        here = self._outputs(0)
        same = [k for k in range(len(self.call.args)) if len(here) == 1 and self._same(here[0], k)]
        if same:
            return self._of_identity(same[0])
        moved = [(k, move) for k, move in enumerate(self.call.moves) if move is not None]
        return "straight-through" if any(self._jumps(k, move) or self._clamps(k) for k, move in moved) else None

    def _same(self, output: torch.Tensor, index: int) -> bool:
        argument = self.call.args[index]
        return self.call.needs[index] and argument.shape == output.shape and torch.equal(argument, output)

    def _of_identity(self, index: int) -> Intended:
        gradient, incoming = self.gradients[index], self.weights[0]
        assert gradient is not None
        factor = float((gradient.conj() * incoming).real.sum())
        if factor < 0:
            return "gradient-reversal"
        return "gradient-scaling" if bool(gradient.any()) else "stop-gradient"

    def _jumps(self, index: int, move: torch.Tensor) -> bool:
        """Whether the forward is a staircase: flat, or far steeper over long steps than over the shortest one."""
        argument = self.call.args[index]
        generator = torch.Generator().manual_seed(self.seed + 1)
        size = _rms(argument) or 1.0
        ways = [size * torch.randn(argument.shape, generator=generator, device="cpu").to(argument) for _ in range(WAYS)]
        nearby = max(self._slope(index, STEPS[0], way) for way in (move, *ways))
        return nearby == 0 or any(self._slope(index, step, way) > STEEPER * nearby for step in JUMPS for way in (move, *ways))

    def _slope(self, index: int, step: float, way: torch.Tensor) -> float:
        """Largest change of an output entry by the size of the step."""
        pairs = zip(self._outputs(index, step * way), self._outputs(index), strict=True)
        changes = [(a - b).abs() for a, b in pairs if a.shape == b.shape and a.numel()]
        return max((float(c[torch.isfinite(c)].max()) / step for c in changes if torch.isfinite(c).any()), default=0.0)

    def _clamps(self, index: int) -> bool:
        """Whether the forward holds its argument between two bounds and changes nothing else: a clamp that lets gradient through.

        With one bound it is a ReLU, whose backward nobody means to be the identity.
        """
        argument, outputs = self.call.args[index], self._outputs(index)
        if len(outputs) != 1 or outputs[0].shape != argument.shape or argument.is_complex():
            return False
        held = outputs[0] != argument
        values = outputs[0][held]
        if not values.numel() or values.min() == values.max():
            return False
        return bool(((values == outputs[0].min()) | (values == outputs[0].max())).all())


def _or_zeros(gradient: torch.Tensor | None, like: torch.Tensor) -> torch.Tensor:
    return torch.zeros_like(like) if gradient is None else gradient.detach().to(like.dtype)


def words_of_gradcheck(call: FunctionCall) -> str | None:
    """What torch.autograd.gradcheck says of the Function at the arguments of this call; None when it agrees."""
    leaves = [a.clone().requires_grad_() if n else a for a, n in zip(call.args, call.needs, strict=True)]
    try:
        torch.autograd.gradcheck(call.cls.apply, tuple(leaves), eps=1e-6, atol=1e-5, rtol=1e-3, fast_mode=True, check_undefined_grad=False)
    except Exception as error:  # of gradcheck, or of a Function that cannot be called so
        return " ".join(str(error).split("\n\n")[0].split())[:160]
    return None
