"""Takes regularization away from a copy: dropout, weight decay, penalties written into the loss, smoothed labels."""

import ast
import itertools
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from gradcheck.instrument.activation_recorder import caller
from gradcheck.types.checks import Dropout
from gradcheck.types.location import Location
from gradcheck.workload.assignments import parsed
from gradcheck.workload.source_sites import location_of_frame, readable_path
from gradcheck.workload.tensors import map_structure
from gradcheck.workload.training_copy import TrainingCopy
from gradcheck.workload.workload import Batch, TrainingStep

DROPOUT, DECAY, PENALTY, SMOOTHING = "dropout", "weight decay", "penalty", "label smoothing"

OUTSIDE = "the step"  # what no module does
_FUNCTIONS = frozenset(
    ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "feature_dropout", "native_dropout")
)
_ATTENTION = frozenset(("scaled_dot_product_attention", "multi_head_attention_forward"))
_RANDOM = frozenset(("rand", "rand_like", "bernoulli", "bernoulli_", "uniform_", "drop_path", "stochastic_depth"))
RATES = ("p", "rate", "prob", "drop_prob", "drop_rate", "dropout", "drop")


class Noise(TorchFunctionMode):
    """Sees calls of dropout and of losses with smoothed labels, and takes away what is in `lift`."""

    def __init__(self, lift: Collection[str] = (), place: Callable[[], str] = lambda: "") -> None:
        super().__init__()
        self.lift, self.place = lift, place
        self.dropouts: dict[str, Dropout] = {}
        self.smoothing = 0.0

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").rstrip("_")
        if name in _FUNCTIONS:
            self._note(_rate(args, kwargs))
            if DROPOUT in self.lift:
                source = args[0] if args else kwargs["input"]
                return (source, torch.ones_like(source, dtype=torch.bool)) if name == "native_dropout" else source
        elif name in _ATTENTION and kwargs.get("dropout_p") and kwargs.get("training", True):
            self._note(float(kwargs["dropout_p"]), attention=True)
            if DROPOUT in self.lift:
                kwargs = {**kwargs, "dropout_p": 0.0}
        elif name == "cross_entropy" and kwargs.get("label_smoothing"):
            self.smoothing = max(self.smoothing, float(kwargs["label_smoothing"]))
            if SMOOTHING in self.lift:
                kwargs = {**kwargs, "label_smoothing": 0.0}
        return func(*args, **kwargs)

    def _note(self, rate: float, attention: bool = False) -> None:
        layer = self.place()
        if rate > 0 and rate > self.dropouts.get(layer, Dropout(layer, 0.0)).rate:
            self.dropouts[layer] = Dropout(layer, rate, location_of_frame(caller()), attention)


def _rate(args: tuple[Any, ...], kwargs: dict[str, Any]) -> float:
    """Of a call dropout(input, p=0.5, training=True); 0 when it is switched off."""
    training = kwargs.get("training", kwargs.get("train", args[2] if len(args) > 2 else True))
    return float(kwargs.get("p", args[1] if len(args) > 1 else 0.5)) if training else 0.0


def seen_noise(copy: TrainingCopy, batch: Batch, sites: Callable[[str], Location | None]) -> tuple[tuple[Dropout, ...], float]:
    """Dropout that one evaluation of the loss applies, and its label smoothing. `sites`: module name -> where it is created."""
    model, stack = copy.model, [(OUTSIDE, copy.model)]

    def place() -> str:
        name, module = stack[-1]
        return name if isinstance(module, nn.modules.dropout._DropoutNd) else f"{name}:dropout"

    noise = Noise(place=place)
    with ExitStack() as hooks:
        for name, module in model.named_modules():
            hooks.enter_context(module.register_forward_pre_hook(lambda m, _, name=name: stack.append((name, m))))
            hooks.enter_context(module.register_forward_hook(lambda *_: void(stack.pop()), always_call=True))
        with torch.no_grad(), noise:
            copy.loss(batch)
    for name, module, rate in noisy_modules(model):
        if rate > 0 and module.training:
            noise.dropouts.setdefault(name, Dropout(name, rate, attention=isinstance(module, nn.MultiheadAttention)))
    found = (Dropout(d.layer, d.rate, sites(d.layer) or d.site, d.attention) for d in noise.dropouts.values())
    return tuple(found), noise.smoothing


def told(call: Location | None) -> bool:
    """Whether the user's call of a dropout says by itself when to drop: F.dropout(x, 0.5, True), or training=..."""
    tree = parsed(readable_path(call.file)) if call is not None else None
    if tree is None or call is None:
        return True  # nothing shows that it is not meant
    calls = (n for n in ast.walk(tree) if isinstance(n, ast.Call) and (n.lineno, n.end_lineno) == (call.line, call.end_line))
    functions = (n for n in calls if not isinstance(n.func, ast.Call) and "dropout" in ast.unparse(n.func).rpartition(".")[2])
    return any(len(n.args) > 2 or any(k.arg in ("training", "train", None) for k in n.keywords) for n in functions)


def void(_: Any) -> None:
    """Keeps a hook from replacing the output."""


def noisy_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module, float]]:
    """Modules that drop values without calling torch's dropout: name, module, and the rate if an attribute gives it."""
    for name, module in model.named_modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            continue
        if isinstance(module, nn.MultiheadAttention) or (isinstance(module, nn.RNNBase) and module.num_layers > 1):
            yield name, module, float(module.dropout)
        elif _written_by_hand(module):
            rates = (getattr(module, attribute, None) for attribute in RATES)
            yield name, module, next((float(r) for r in rates if isinstance(r, float) and 0 < r <= 1), 0.0)


def _written_by_hand(module: nn.Module) -> bool:
    """Whether its forward method draws random numbers and asks whether it is training."""
    code = getattr(getattr(type(module), "forward", None), "__code__", None)
    return code is not None and "training" in code.co_names and not _RANDOM.isdisjoint(code.co_names)


def lift(copy: TrainingCopy, kinds: Collection[str]) -> None:
    """Takes these kinds of regularization away from the copy, for good."""
    if DECAY in kinds:
        for group in copy.optimizer.param_groups:
            if group.get("weight_decay"):
                group["weight_decay"] = 0.0
    if DROPOUT in kinds:
        for _, module, _ in noisy_modules(copy.model):
            if isinstance(module, (nn.MultiheadAttention, nn.RNNBase)):
                module.dropout = 0.0
            else:
                module.training = False
    if PENALTY in kinds:
        copy.training_step = without_penalty(copy.training_step)
    if {DROPOUT, SMOOTHING} & set(kinds):
        copy.training_step = _under(copy.training_step, kinds)


def _under(step: TrainingStep, kinds: Collection[str]) -> TrainingStep:
    def quiet(model: nn.Module, batch: Batch) -> torch.Tensor:
        with Noise(kinds):
            return step(model, batch)

    return quiet


# --------------------------------------------------------------- penalties in the loss


def without_penalty(step: TrainingStep) -> TrainingStep:
    """The step without the part of its loss that depends on the weights other than through the model's output; value and gradient."""

    def data_only(model: nn.Module, batch: Batch) -> torch.Tensor:
        outputs: list[Any] = []
        with recording(model, outputs):
            loss = step(model, batch)
        if not outputs:
            return loss
        with answering(model, outputs):
            fixed = step(model, batch)
        return loss - fixed + without_weights(step, model, batch, outputs)

    return data_only


def without_weights(step: TrainingStep, model: nn.Module, batch: Batch, outputs: Sequence[Any]) -> torch.Tensor:
    """The loss of these outputs if all weights were zero: that of the data alone, for penalties that are zero there."""
    parameters = list(model.parameters())
    kept = [p.data for p in parameters]
    try:
        for p in parameters:
            p.data = torch.zeros_like(p)
        with torch.no_grad(), answering(model, outputs):
            return step(model, batch).detach()
    finally:
        for p, values in zip(parameters, kept, strict=True):
            p.data = values


@contextmanager
def recording(model: nn.Module, outputs: list[Any]) -> Iterator[None]:
    """Appends what each call of the model returns, without its graph."""
    with model.register_forward_hook(lambda _, __, output: outputs.append(map_structure(_detached, output))):
        yield


def _detached(value: Any) -> Any:
    return value.detach() if isinstance(value, torch.Tensor) else value


@contextmanager
def answering(model: nn.Module, outputs: Sequence[Any]) -> Iterator[None]:
    """Calls of the model return the given outputs, in turn, and do not run it."""
    answers = itertools.cycle(outputs)
    own = model.__dict__.get("forward")
    model.__dict__["forward"] = lambda *_, **__: next(answers)
    try:
        yield
    finally:
        del model.__dict__["forward"]
        if own is not None:
            model.__dict__["forward"] = own
