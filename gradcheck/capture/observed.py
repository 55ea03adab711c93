"""A Measurement of what was seen in the script's own run, for a loss that cannot be computed again."""

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import torch

from gradcheck.capture.events import BackwardPass, OptimizerTrace
from gradcheck.capture.nodes import Weight, nodes_behind
from gradcheck.capture.recorder import Recorder
from gradcheck.measure.facts import environment, optimizer_facts
from gradcheck.types.data import DataFacts
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopFacts
from gradcheck.types.measurement import Measurement, NotMeasured
from gradcheck.types.parameters import Cut, Parameter
from gradcheck.types.training import OptimizerFacts, Run
from gradcheck.workload.comments import ignores, snippets
from gradcheck.workload.device import wide
from gradcheck.workload.dtensor import local

SEEN = frozenset(("reach", "optimizer", "loop"))  # what the run itself shows,
FROM_PASSES = frozenset(("reach",))  # as far as it had a backward pass


def observed(
    recorder: Recorder,
    watched: OptimizerTrace | None,
    loop: LoopFacts,
    name: str,
    files: Sequence[str],
    blind: NotMeasured,
    needs: Collection[str],
) -> Measurement:
    """`blind`: why the training could not be repeated. `needs`: all that rules may ask for."""
    passes = _passes(recorder, watched)
    reached = frozenset().union(*(p.reached for p in passes)) if passes else frozenset()
    groups = watched.optimizer.param_groups if watched is not None else []
    wanted = watched.ids if watched is not None else frozenset(recorder.tape.weights)
    weights = [w for w in recorder.tape.weights.values() if watched is None or w.owner.memo.keys() & wanted]
    others = frozenset().union(*(w.ids for w in recorder.optimizers.values())) - wanted if watched is not None else frozenset()
    parameters = tuple(_parameter(w, reached, groups, others) for w in weights)
    cuts = _cuts(recorder, passes, parameters, [w.owner.original for w in weights])
    places = [c.site for c in cuts if c.site is not None]
    seen = SEEN if passes else SEEN - FROM_PASSES
    return Measurement(
        target=name,
        seed=0,
        steps=loop.steps,
        measured_steps=(),
        environment=environment(torch.nn.Module()),
        layers=(),
        parameters=parameters,
        optimizer=_optimizer(watched),
        data=DataFacts(True, 0, 0),
        probe=own_run(loop),
        loss_given=True,
        cuts=cuts,
        loop=loop,
        not_measured=tuple(replace(blind, what=need) for need in needs if need not in seen),
        ignores=ignores(files),
        snippets=snippets(places),
    )


def own_run(loop: LoopFacts) -> Run:
    """The script's own steps as a run. Non-finite losses end it if no finite one follows; otherwise the loop skips them."""
    finite = [math.isfinite(x) for x in loop.losses]
    last = max((i for i, good in enumerate(finite) if good), default=-1)
    kept = tuple(x for x, good in zip(loop.losses[: last + 1], finite, strict=False) if good)
    broken = loop.losses[last + 1 : last + 2]
    return Run("the script's own steps", (*kept, *broken), live=True, ended="non-finite" if broken else "done")


def _passes(recorder: Recorder, watched: OptimizerTrace | None) -> list[BackwardPass]:
    if watched is None:
        return recorder.unclaimed
    return [p for s in watched.steps for p in s.passes] or watched.live or recorder.unclaimed


def _parameter(weight: Weight, reached: frozenset[int], groups: Sequence[dict[str, Any]], others: frozenset[int]) -> Parameter:
    """`others`: what other optimizers of the script train, which this training takes as it is."""
    before = weight.owner.before(weight)
    values = wide(local(before.detach()))
    held = [g for g in groups if any(id(p) == weight.key for p in g["params"])]
    return Parameter(
        weight.name,
        weight.name.rpartition(".")[0],
        tuple(before.shape),
        before.numel(),
        str(before.dtype).removeprefix("torch."),
        before.requires_grad and weight.key not in others,
        len(held),
        mean=float(values.mean()) if values.numel() else 0.0,
        std=float(values.std(correction=0)) if values.numel() else 0.0,
        used=weight.key in reached,
        weight_decay=max((float(g.get("weight_decay") or 0.0) for g in held), default=0.0),
    )


def _cuts(
    recorder: Recorder, passes: Sequence[BackwardPass], parameters: Sequence[Parameter], models: Sequence[torch.nn.Module]
) -> tuple[Cut, ...]:
    """Where a loss that reaches nothing lost its gradient: on the way to it from the models, if that is known. Otherwise at the last cut
    before it, or the first behind the model.
    """
    names = tuple(p.name for p in parameters if p.trainable and not p.used)
    if not passes or len(names) < sum(p.trainable for p in parameters):
        return ()
    roots, modules = frozenset(map(id, models)), {id(m) for model in models for m in model.modules()}
    before = recorder.tape.cuts[: passes[0].cuts]
    mine = [c for c in recorder.tape.cuts if c.owners & roots]
    behind = nodes_behind([passes[0].ref.node]) if passes[0].ref is not None else []
    way = {n.serial for n in behind}
    on_way = [c for c in mine if c.serial in way]
    calls = [place for key, place in passes[0].unfollowed.items() if key in modules]
    if calls and not on_way:
        return (Cut("no_grad", "", calls[-1], names),)
    cut = next(reversed([*mine[:1], *before[-1:], *on_way]), None)
    return (Cut(cut.operation, "", cut.site, names),) if cut is not None else ()


def _optimizer(watched: OptimizerTrace | None) -> OptimizerFacts:
    if watched is None:
        return OptimizerFacts("none", False, False, 0.0)
    site: Location | None = watched.site
    return optimizer_facts(watched.copy or watched.optimizer, torch.nn.Module(), given=True, hidden=len(watched.parameters), site=site)
