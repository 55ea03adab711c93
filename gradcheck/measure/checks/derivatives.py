"""Whether autograd computes the derivative of the loss: directional derivatives in float64 against central differences. One random
direction over all parameters is enough if they agree. If not, more directions and steps follow, and then the suspects: calls of custom
Functions, each tested by itself, hooks that change the gradient, detached values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.graph_structure import upstream_leaves
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.float64 import Wide, in_double, widen, widened
from gradcheck.measure.checks.functions import (
    FINE,
    ROUNDING,
    STEPS,
    CallRecorder,
    DerivativeComparison,
    FunctionCall,
    Tested,
    add_moves,
    custom_functions,
    name_of,
    tested,
    words_of_gradcheck,
)
from gradcheck.measure.checks.gradient_changes import ModuleStack, Watch
from gradcheck.types.checks import Derivatives, Intended
from gradcheck.workload.device import has_float64
from gradcheck.workload.lockstep import now
from gradcheck.workload.rng import Dice
from gradcheck.workload.source_sites import origin_of
from gradcheck.workload.tensors import tensors_in
from gradcheck.workload.training_copy import TrainingCopy, is_divisible, some_samples

SAMPLES = 4
DIRECTIONS = 3
FEWEST_ERRORS = 2  # directions that have to agree on it if the first one speaks against autograd
JITTER = 0.05  # of a weight's size: the test is made beside the start, where no unit sits on a kink and no branch is closed
SLOWER = 5.0  # times a float32 step of as many samples, roughly: what a pass with gradient takes in float64
PASSES = 2.5  # the whole check in such passes
SHARE = 0.25  # of the time left that it may take
LARGE = 50_000_000  # parameters: the copies below would take more memory than the training, which has four of float32
LARGE_OFFLOADED = 1_000_000  # where the user asks for memory to be saved: the copies take 40 MB
COPIES = 5  # of the parameters, in float64: weights, their start, the origin, a direction, gradients
POOL = 100_003  # normal numbers that directions are made of; prime, so that no row of a weight meets them in step
DIFFERENCE = 1e-3  # disagreement of a Function by itself that makes it a suspect (E6: a backward off by 1 % gives 2e-3)


def derivatives(context: CheckContext) -> Derivatives:
    """Raises Unmeasured when the training step does not run in float64, or when it would take too long."""
    _affordable(context)
    copy = context.fork()
    batch = some_samples(context.workload, SAMPLES)
    with in_double():
        widen(copy.model)
        case = _Case(copy, widened(batch), context)
        try:
            case.start()
        except Unmeasured:
            raise
        except Exception as error:
            raise Unmeasured("the training step raised an error in float64, in which derivatives are compared") from error
        return case.result()


def _affordable(context: CheckContext) -> None:
    if not has_float64(context.workload.device):
        raise Unmeasured("this device cannot compute in float64, in which derivatives are compared")
    steps = max(1, len(context.probe.losses))
    first = next(iter(context.workload.batches[:1]), None)
    rows = max((t.shape[0] for t in tensors_in(first) if t.dim()), default=1)
    share = min(1.0, SAMPLES / rows) if is_divisible(context.workload) else 1.0
    seconds = PASSES * SLOWER * context.probe.seconds / steps * share
    parameters, borrowed = sum(p.numel() for p in context.workload.model.parameters()), context.workload.borrowed
    large = LARGE_OFFLOADED if borrowed is not None and borrowed.spill else LARGE
    dear = seconds > SHARE * max(0.0, context.deadline - now())
    if not dear and parameters < large:
        return
    own = [c for c in custom_functions() if origin_of(_file_of(c)) == "user"]
    more = "" if own else "; this program has no backward() of its own that could be wrong"
    if dear:
        raise Unmeasured(f"it would take about {seconds:.2g} s in float64, more than its share of the time that is left{more}")
    if not own:
        raise Unmeasured(f"it would take about {8 * COPIES * parameters / 2**30:.2g} GiB in float64, more than the training{more}")


def _file_of(cls: type) -> str:
    code = getattr(getattr(cls, "forward", None), "__code__", None)
    return code.co_filename if code is not None else "<unknown>"


# --------------------------------------------------------------------------- the check


@dataclass
class _Case:
    """A copy in float64, its weights moved a little off the start, and one batch."""

    copy: TrainingCopy
    batch: Any
    context: CheckContext
    weights: list[nn.Parameter] = field(default_factory=list)
    origin: list[torch.Tensor] = field(default_factory=list)  # weights as they are tested
    gradients: list[torch.Tensor] = field(default_factory=list)
    calls: list[FunctionCall] = field(default_factory=list)
    value: float = math.nan

    def start(self) -> None:
        """The loss and its gradient. Raises Unmeasured when there is none, or the user's own exception."""
        model = self.copy.model
        self.stack, self.dice = ModuleStack(model), Dice(self.context.seed)
        self.watch = Watch(self.stack.layer)
        self.watch.watch_modules(model, lambda name: self.context.sites.get(name))
        self.generator = torch.Generator().manual_seed(self.context.seed)
        self.pool = torch.randn(POOL, generator=self.generator, device="cpu")
        self.buffers = [(m, k, b.clone()) for m in model.modules() for k, b in m._buffers.items() if b is not None]
        weights = [p for p in model.parameters() if p.requires_grad]
        start = [p.detach().clone() for p in weights]
        for jitter in (JITTER, 0.0):
            self.weights, self.scales = weights, [_scale(p) for p in start]
            self.origin = [p + jitter * d for p, d in zip(start, self._direction(), strict=True)]
            try:
                if self._gradient():
                    return
            except Exception:
                if not jitter:
                    raise
        raise Unmeasured("the loss is NaN or infinite in float64 as well")

    def _direction(self) -> list[torch.Tensor]:
        """Normal numbers for every weight, as large as the weights of its tensor."""
        found = [self._normal(p).mul_(s) for p, s in zip(self.weights, self.scales, strict=True)]
        for p, direction in zip(self.weights, found, strict=True):
            row = self.watch.padding.get(id(p))
            if row is not None and -len(direction) <= row < len(direction):
                direction[row] = 0.0
        return found

    def _normal(self, like: torch.Tensor) -> torch.Tensor:
        """Numbers from one pool, each tensor starting at another place in it: drawing millions takes longer than a pass."""
        start = int(torch.randint(POOL, (), generator=self.generator, device="cpu"))
        rounds = -(-(start + like.numel()) // POOL)
        pool = self.pool if rounds == 1 else self.pool.repeat(rounds)
        return pool[start : start + like.numel()].reshape(like.shape).to(like, copy=True)

    def _gradient(self) -> bool:
        """The gradient at the origin; False when the loss is not finite there."""
        recorder = CallRecorder(self.stack.layer)
        self.watch.recorder = recorder
        for p in self.copy.model.parameters():
            p.grad = None
        with self.stack.following(), self.watch, recorder.recording():
            loss = self._loss()
            if not loss.requires_grad:
                raise Unmeasured("the loss has no gradient")
            reached = {id(leaf) for leaf in upstream_leaves([loss.grad_fn])}
            loss.backward()
        self.value, self.calls = float(loss.detach()), recorder.calls
        if not math.isfinite(self.value):
            return False
        kept = [k for k, p in enumerate(self.weights) if p.grad is not None or id(p) in reached]
        self.weights, self.origin = [self.weights[k] for k in kept], [self.origin[k] for k in kept]
        self.scales = [self.scales[k] for k in kept]
        self.gradients = [torch.zeros_like(p) if p.grad is None else p.grad.detach().to_dense() for p in self.weights]
        if not self.weights:
            raise Unmeasured("the loss depends on no parameter")
        return all(bool(torch.isfinite(g).all()) for g in self.gradients)

    def _loss(self, direction: Sequence[torch.Tensor] = (), step: float = 0.0) -> torch.Tensor:
        """The loss at the origin, or a step away from it: the same buffers and random numbers each time."""
        with torch.no_grad():
            for p, values in zip(self.weights, self.origin, strict=True):
                p.copy_(values)
            if direction:
                torch._foreach_add_(list(self.weights), list(direction), alpha=step)
            for module, name, values in self.buffers:
                now = module._buffers.get(name)
                if now is not None and now.shape == values.shape and now.dtype == values.dtype:
                    now.copy_(values)
                else:
                    module._buffers[name] = values.clone()
        self.dice.throw()
        return self.copy.loss(self.batch)

    def _at(self, direction: Sequence[torch.Tensor] = (), step: float = 0.0) -> float:
        with Wide():
            return float(self._loss(direction, step).detach())

    def _difference(self, direction: Sequence[torch.Tensor], step: float) -> float:
        return (self._at(direction, step) - self._at(direction, -step)) / (2 * step)

    def result(self) -> Derivatives:
        again = self._at()
        if abs(again - self.value) > 1e-12 * max(abs(self.value), 1e-300):
            return Derivatives(math.nan, 0, deterministic=False)
        errors: list[float] = []
        suspects = bool(self.calls or self.watch.hooked)
        for i in range(DIRECTIONS if suspects else 1):
            direction = self._direction()
            error = self._error(direction)
            if i == 0 and error is not None and error <= FINE:
                return Derivatives(error, 1)
            if i == 0 and self.calls:
                self._move_calls(direction)
            if error is not None:
                errors.append(error)
        if len(errors) < (FEWEST_ERRORS if suspects else 1):
            raise Unmeasured("the loss is too rough around the weights: its differences do not settle as the step gets smaller")
        error = median(errors)
        return Derivatives(error, len(errors)) if error <= FINE else self._explained(error, len(errors))

    def _error(self, direction: Sequence[torch.Tensor]) -> float | None:
        analytic = sum(float(torch.vdot(g.reshape(-1), d.reshape(-1)).real) for g, d in zip(self.gradients, direction, strict=True))
        compared = DerivativeComparison(analytic)
        for step in STEPS:
            difference = self._difference(direction, step)
            if not math.isfinite(difference):
                return None
            compared.add(step, difference, ROUNDING * max(abs(self.value), 0.1) / step)
            if compared.disagreement is not None:
                break
        return compared.disagreement

    def _move_calls(self, direction: Sequence[torch.Tensor]) -> None:
        passes = []
        for sign in (1, -1):
            recorder = CallRecorder(self.stack.layer)
            with self.stack.following(), recorder.recording():
                self._at(direction, sign * STEPS[0])
            passes.append(recorder.calls)
        add_moves(self.calls, *passes)

    # ------------------------------------------------------------------------ the cause

    def _explained(self, error: float, directions: int) -> Derivatives:
        """The suspect at fault: a Function whose backward is wrong, one that is off on purpose, a hook, a detached value."""
        off = [t for t in map(self._tested, self.calls) if t is not None and (t.error or 0.0) > DIFFERENCE]
        known = [t for t in off if t.loss is None]
        if known or self.watch.hooked or any(t.loss is not None and math.isclose(t.loss, self.value, rel_tol=FINE) for t in off):
            off = known  # a loss that is trained on as it is
        culprit = next((t for t in off if t.intended is None), None) or max(off, key=lambda t: t.error or 0.0, default=None)
        if culprit is not None:
            call = culprit.call
            words = words_of_gradcheck(call) if culprit.intended is None else None
            return Derivatives(
                error,
                directions,
                function=name_of(call.cls),
                function_error=culprit.error,
                layer=call.layer,
                site=call.site,
                intended=culprit.intended,
                gradcheck=words,
            )
        if self.watch.hooked:
            hook = min(self.watch.hooked, key=lambda h: h.factor)
            return Derivatives(error, directions, layer=hook.layer, site=hook.site, hook=hook.kind, hook_factor=hook.factor)
        if self.watch.stops:
            own = [s for s in self.watch.stops if s.site is not None and s.site.detail is None]
            stop = (own or self.watch.stops)[0]
            intended: Intended = "straight-through" if stop.through or self.watch.stairs else "stop-gradient"
            return Derivatives(error, directions, layer=stop.layer, site=stop.site, intended=intended)
        return Derivatives(error, directions)

    def _tested(self, call: FunctionCall) -> Tested | None:
        try:
            with Wide():
                return tested(call, self.context.seed)
        except Exception:  # a Function that cannot be called by itself
            return None


def _scale(weights: torch.Tensor) -> float:
    """How far a weight may be moved: the root mean square of its tensor, or what is usual for a tensor of zeros."""
    size = float(weights.norm()) / max(1, weights.numel()) ** 0.5
    if size > 0:
        return size
    return 0.1 if weights.dim() < 2 else (weights.numel() / weights.shape[0]) ** -0.5
