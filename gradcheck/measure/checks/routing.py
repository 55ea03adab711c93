"""Routers: choices by top-k or argmax among equally many similar modules, or slices of one weight, and what each of these gets."""

import math
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.activation_recorder import ActivationRecorder, caller
from gradcheck.measure.checks.context import CheckContext
from gradcheck.types.location import Location
from gradcheck.types.structure import Router
from gradcheck.workload.device import wide
from gradcheck.workload.rng import Dice
from gradcheck.workload.source_sites import location_of_frame
from gradcheck.workload.tensors import tensors_in
from gradcheck.workload.training_copy import TrainingCopy, restored

BATCHES = 4
CHOICES = frozenset(("topk", "argmax", "max"))


@dataclass(frozen=True)
class ExpertGroup:
    """Experts: the children of a container, or the slices of a weight (`members` empty)."""

    owner: str  # module that holds them
    count: int
    members: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    layer: str
    scores: torch.Tensor  # [tokens, experts]
    index: torch.Tensor  # [tokens, chosen]
    site: Location | None


def routers(context: CheckContext) -> tuple[Router, ...] | None:
    """None where no module holds anything that could be experts."""
    copy = context.sound()
    groups = groups_of(copy.model)
    if not groups:
        return None
    after = _chosen(context, copy, groups)
    if not after:
        return ()
    before = _chosen(context, context.fork(), groups) if copy is context.trained else after
    return tuple(_router(layer, after[layer], before.get(layer, after[layer])) for layer in after)


def groups_of(model: nn.Module) -> list[ExpertGroup]:
    """Similar modules in one container, and slices of one weight: what could be experts."""
    found = []
    for name, module in model.named_modules():
        if any(nn.parameter.is_lazy(p) for p in module.parameters()):
            continue
        owner = name.rpartition(".")[0]
        children = list(module.named_children())
        if len(children) > 1 and len({_form(c) for _, c in children}) == 1 and _form(children[0][1])[1]:
            found.append(ExpertGroup(owner, len(children), tuple(f"{name}.{n}" if name else n for n, _ in children)))
        stacked = {p.shape[0] for p in module.parameters(recurse=False) if p.dim() == 3 and p.shape[0] > 1}
        found += [ExpertGroup(owner, count) for count in stacked]
    return found


def _form(module: nn.Module) -> tuple[type, tuple[torch.Size, ...]]:
    return type(module), tuple(p.shape for p in module.parameters())


class Watching(ActivationRecorder):
    """Sees choices inside the model, and how many rows each expert gets."""

    def __init__(self, names: Mapping[int, str], groups: Sequence[ExpertGroup]) -> None:
        super().__init__(names)
        self.counts = {g.count for g in groups}
        self.experts = {m for g in groups for m in g.members}
        self.choices: list[Choice] = []
        self.rows: dict[str, int] = defaultdict(int)
        self.given: dict[str, set[int]] = defaultdict(set)  # what experts are called with
        self.kept: list[torch.Tensor] = []
        self.scored: dict[int, Location | None] = {}  # by the number of scores: where a layer was last called that gives so many

    def _module_call(self, module: nn.Module, name: str, role: Any, inputs: list[torch.Tensor], tensor: torch.Tensor) -> None:
        if name in self.experts and inputs:
            self.rows[name] += inputs[0].numel() // max(1, inputs[0].shape[-1])
            self.given[name].add(id(inputs[0]))
            self.kept.append(inputs[0])  # so that no other tensor gets its id
        elif role.kind == "linear" and tensor.shape[-1] in self.counts:
            self.scored[tensor.shape[-1]] = location_of_frame(caller())

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = function(*args, **(kwargs or {}))
        if self.recording and self.stack and getattr(function, "__name__", "") in CHOICES:
            self._choice(args, kwargs or {}, output)
        return output

    def _choice(self, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        scores, index = chosen_in(args, kwargs, output, self.counts)
        if scores is None or index is None or int(index.max()) >= scores.shape[1]:
            return
        site = self.scored.get(scores.shape[1]) or location_of_frame(caller())
        self.choices.append(Choice(self.module_name, scores, index.reshape(len(scores), -1), site))

    def is_routing(self, choice: Choice, groups: Sequence[ExpertGroup]) -> bool:
        return any(g.count == choice.scores.shape[1] and near(g.owner, choice.layer) and self._follows(choice, g) for g in groups)

    def _follows(self, choice: Choice, group: ExpertGroup) -> bool:
        loads = torch.bincount(choice.index.reshape(-1), minlength=group.count).tolist() if group.members else []
        return follows(group, loads, self.rows, self.given)


def chosen_in(
    args: Any, kwargs: dict[str, Any], output: Any, counts: Collection[int]
) -> tuple[torch.Tensor, torch.Tensor] | tuple[None, None]:
    """Scores [tokens, experts] and the indices that one of CHOICES chose along them; nothing where it has no such number of scores."""
    scores = args[0] if args else kwargs.get("input")
    index = next((t for t in tensors_in(output) if t.dtype == torch.int64), None)
    if not isinstance(scores, torch.Tensor) or index is None or not scores.requires_grad or scores.dim() < 2:
        return None, None
    along = index.shape[:-1] == scores.shape[:-1] if index.dim() == scores.dim() else index.shape == scores.shape[:-1]
    if scores.shape[-1] not in counts or not along:
        return None, None
    return scores.reshape(-1, scores.shape[-1]), index


def follows(group: ExpertGroup, loads: Sequence[float], rows: Mapping[str, int], given: Mapping[str, set[int]]) -> bool:
    """Whether the experts get the rows chosen for them, or all of them get the same. `given`: ids of what each is called with."""
    if not group.members:
        return True
    got = [rows.get(m, 0) for m in group.members]
    if sum(got) and all(r <= load for r, load in zip(got, loads, strict=True)):
        return True
    return len({frozenset(given.get(m, ())) for m in group.members}) == 1 and bool(got[0])


def near(owner: str, layer: str) -> bool:
    """Whether a choice is made in the module that holds the experts, or in one beside them."""
    return owner in (layer, layer.rpartition(".")[0])


def _chosen(context: CheckContext, copy: TrainingCopy, groups: Sequence[ExpertGroup]) -> dict[str, list[Choice]]:
    """Choices by layer, over some batches."""
    names = {id(m): name for name, m in copy.model.named_modules()}
    found: dict[str, list[Choice]] = defaultdict(list)
    Dice(context.seed).throw()
    with restored(copy):
        for batch in context.workload.batches[:BATCHES]:
            watching = Watching(names, groups)
            with watching:
                copy.loss(batch)
            for choice in watching.choices:
                if watching.is_routing(choice, groups):
                    found[choice.layer].append(replace(choice, scores=choice.scores.detach()))
            if not found:
                break
    return found


def _router(layer: str, after: Sequence[Choice], before: Sequence[Choice]) -> Router:
    experts, chosen = after[0].scores.shape[1], after[0].index.shape[1]
    probabilities = torch.cat([distribution(c.scores) for c in after])
    entropy = -(probabilities * probabilities.clamp_min(1e-30).log()).sum(-1).mean()
    tokens = sum(len(c.index) for c in after)
    return Router(layer, experts, chosen, tokens, _loads(after), _loads(before), float(entropy) / math.log(experts), after[0].site)


def distribution(scores: torch.Tensor) -> torch.Tensor:
    scores = wide(scores)
    sums = scores.sum(-1)
    if bool((scores >= 0).all()) and torch.allclose(sums, torch.ones_like(sums), atol=1e-3):
        return scores
    return scores.softmax(-1)


def _loads(choices: Sequence[Choice]) -> tuple[float, ...]:
    experts = choices[0].scores.shape[1]
    counts = sum(torch.bincount(c.index.reshape(-1), minlength=experts) for c in choices)
    assert isinstance(counts, torch.Tensor)
    return tuple((counts / counts.sum()).tolist())
