"""What can be told of a model without running it: structure, how its weights are drawn, adapters, optimizer, memory."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import nn

from gradcheck.instrument.initializers import Drawn, Initializers
from gradcheck.measure import facts
from gradcheck.measure.checks.adapters import adapters_of
from gradcheck.types.data import DataFacts
from gradcheck.types.measurement import Assumption, Measurement, NotMeasured
from gradcheck.types.parameters import Parameter
from gradcheck.types.structure import Adaptation
from gradcheck.types.training import Run
from gradcheck.workload.comments import ignores
from gradcheck.workload.device import memory_of

KNOWN = frozenset(("optimizer", "adapters"))
WHY = "nothing was run: --init-only looks at how the model is built"
MOST_KINDS = 12  # of layers that are told of


def initialization(
    name: str,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    draws: Initializers,
    needs: Collection[str],
    *,
    optimizer_given: bool,
    said: Sequence[Assumption] = (),
    files: Sequence[str] = (),
    seed: int = 0,
) -> Measurement:
    """`needs`: all that rules may ask for; whatever takes numbers is listed as not measured."""
    known = {id(p): draws.of(p) for p in model.parameters()}
    held: dict[int, float] = {}
    for group in optimizer.param_groups:
        held |= {id(p): float(group.get("weight_decay") or 0.0) for p in group["params"]}
    parameters = tuple(_parameter(n, p, known[id(p)], held) for n, p in model.named_parameters())
    memory = memory_of(model, optimizer)
    remedy = "scan it where it can be trained, or scan a smaller model of its kind"
    adaptation = adapters_of(model, {})
    forecast = f"a training takes {memory.text}: for them a batch is needed, and nothing was run"
    told = [Assumption("structure", _structure(model), given=True), Assumption("memory", forecast, given=True)]
    told += [Assumption("adapters", _adapters(adaptation), given=True)] if adaptation is not None else []
    told += [Assumption("initialization", text, given=True) for text in _by_kind(model, known)]
    return Measurement(
        target=name,
        seed=seed,
        steps=0,
        measured_steps=(),
        environment=facts.environment(model),
        layers=(),
        parameters=parameters,
        optimizer=facts.optimizer_facts(optimizer, model, given=optimizer_given, hidden=0, site=None),
        data=DataFacts(False, 0, 0),
        probe=Run("probe", ()),
        adaptation=adaptation,
        not_measured=tuple(NotMeasured(need, WHY, remedy=remedy) for need in needs if need not in KNOWN),
        assumptions=(*said, *told),
        ignores=ignores(files),
    )


def _parameter(name: str, p: nn.Parameter, drawn: Drawn, held: Mapping[int, float]) -> Parameter:
    return Parameter(
        name,
        name.rpartition(".")[0],
        tuple(p.shape),
        p.numel(),
        str(p.dtype).removeprefix("torch."),
        p.requires_grad,
        int(id(p) in held),
        mean=drawn.mean if drawn.mean is not None else math.nan,
        std=drawn.std if drawn.std is not None else math.nan,
        weight_decay=held.get(id(p), 0.0),
    )


def _structure(model: nn.Module) -> str:
    parameters = list(model.parameters())
    count, trained = (sum(p.numel() for p in some) for some in (parameters, (p for p in parameters if p.requires_grad)))
    share = "" if trained == count else f", {trained:.3g} of them trained"
    return f"{count:.3g} parameters{share}, in {len(parameters):,} tensors of {sum(1 for _ in model.modules()):,} modules"


def _adapters(adaptation: Adaptation) -> str:
    """How many there are, of which ranks, and which frozen linear layers have none."""
    ranks = sorted({a.rank for a in adaptation.adapters if a.rank is not None})
    of = f" of rank {', '.join(map(str, ranks))}" if ranks else ""
    bare = Counter(name.rpartition(".")[2] for name, _ in adaptation.bare)
    text = f"{len(adaptation.adapters):,} adapters{of}"
    if not bare:
        return f"{text}, at every frozen linear layer"
    names = ", ".join(f"{count:,} {name}" for name, count in bare.most_common(MOST_KINDS))
    count = sum(bare.values())
    return f"{text}; none at {count:,} frozen linear layer{'s' * (count != 1)} ({names})"


def _by_kind(model: nn.Module, known: Mapping[int, Drawn]) -> Iterator[str]:
    """A line for each kind of weight: how many there are, how they are drawn, and, for matrices, the gain."""
    kinds: dict[tuple[str, str, bool], list[nn.Parameter]] = defaultdict(list)
    adapted = len({p.requires_grad for p in model.parameters()}) > 1
    seen: set[int] = set()
    for module in model.modules():
        for name, p in module.named_parameters(recurse=False):
            if id(p) not in seen:
                seen.add(id(p))
                kinds[type(module).__name__, name, adapted and not p.requires_grad].append(p)
    ordered = sorted(kinds.items(), key=lambda kind: -sum(p.numel() for p in kind[1]))
    for (module_kind, name, frozen), weights in ordered[:MOST_KINDS]:
        drawn = [(p, d) for p in weights if (d := known[id(p)]).std is not None]
        entries = f"{sum(p.numel() for p in weights):.3g} entries"
        text = f"{name} of {len(weights)} {'frozen ' * frozen}{module_kind} ({entries}): "
        if not drawn:
            yield f"{text}how it is drawn was not seen"
            continue
        # Of weights with more axes it is not known which are those of the inputs, but of convolutions.
        matrices = (
            all(p.dim() == 2 or (p.dim() > 2 and module_kind.startswith("Conv")) for p, _ in drawn)
            and "embedding" not in module_kind.lower()
        )
        inputs = [p.shape[0] if module_kind == "Conv1D" else p.numel() / p.shape[0] for p, _ in drawn]  # of transformers: [in, out]
        gains = [(d.std or 0.0) * n**0.5 for (_, d), n in zip(drawn, inputs, strict=True)] if matrices else []
        gain = f", gain {_range(gains)}" if gains else ""
        yield f"{text}std {_range([d.std or 0.0 for _, d in drawn])}, mean {_range([d.mean or 0.0 for _, d in drawn])}{gain}"


def _range(values: Sequence[float]) -> str:
    low, high = (float(f"{v:.2g}") for v in (min(values), max(values)))
    return f"{low:g}" if low == high else f"{low:g} to {high:g}"
