"""From a recorded loop to a Workload: the model as it was before training, its batches, and a step that computes the same loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import WeightedRandomSampler

from gradcheck.capture.bounds import Bounds, Projections
from gradcheck.capture.events import BackwardPass, OptimizerTrace
from gradcheck.capture.layout import first_given, samples_axis, time_first_calls
from gradcheck.capture.nodes import Owner, Ref
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.replay import Helpers, Models, Program, replay
from gradcheck.capture.slices import Slice, slices_of
from gradcheck.capture.together import as_one
from gradcheck.capture.twins import ReplayMismatch, Twins, twins_of
from gradcheck.instrument.loop_journal import ClipCalls
from gradcheck.loading.optimizers import assumed_optimizer, rate_of
from gradcheck.measure.experiments import Forgetting
from gradcheck.types.measurement import Assumption
from gradcheck.workload.process_state import untouched
from gradcheck.workload.training_copy import copy_optimizer
from gradcheck.workload.workload import Clipping, Workload

LEAST = 0.1  # of the highest rate: after the recorded steps the rate does not fall below this share of it


@dataclass
class Schedule:
    """Hooks around an optimizer's step. They scale whatever rates the groups have at the time, and put them back."""

    peaks: tuple[float, ...]  # highest rate of each group
    factors: tuple[tuple[float, ...], ...]  # by step, by group: the rate over the peak
    step: int = 0
    _kept: tuple[Any, ...] = ()

    @classmethod
    def of(cls, rates: Sequence[tuple[float, ...]]) -> Schedule | None:
        """`rates` by step and group; None when they stay as they are."""
        usable = [r for r in rates if len(r) == len(rates[0])]
        if len(set(usable)) < 2:
            return None
        peaks = tuple(max(column) for column in zip(*usable, strict=True))
        factors = [tuple(r / p if p else 1.0 for r, p in zip(row, peaks, strict=True)) for row in usable]
        return cls(peaks, tuple(factors))

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        over = self.step >= len(self.factors)
        row = self.factors[-1 if over else self.step]
        self._kept = tuple(group["lr"] for group in optimizer.param_groups)
        for group, factor in zip(optimizer.param_groups, row, strict=True):
            group["lr"] = group["lr"] * (max(factor, LEAST) if over else factor)
        self.step += 1

    def after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        for group, rate in zip(optimizer.param_groups, self._kept, strict=True):
            group["lr"] = rate


@dataclass
class StepOptions:
    """A hook before an optimizer's step: `step(burn_in=True)`."""

    options: Sequence[Mapping[str, Any]]  # by step; those of the last one hold on
    step: int = 0

    def before(self, optimizer: Any, args: Any, kwargs: Any) -> tuple[Any, Any]:
        given = self.options[min(self.step, len(self.options) - 1)]
        self.step += 1
        return args, {**given, **kwargs}


FEW_BATCHES = 4  # of one pass over a loader; with fewer, those of the next passes are taken too


@dataclass
class Taken:
    """The taped steps that a workload repeats: the passes of each, and the last call on the tape before it."""

    passes: list[list[BackwardPass]] = field(default_factory=list)
    since: list[int] = field(default_factory=list)
    one_pass: bool = False  # over a loader that hands out each sample once

    def slices(self, held: Collection[int]) -> list[Slice]:
        return slices_of([[p.ref for p in passes if p.ref is not None] for passes in self.passes], self.since, held)


def workload_of(
    recorder: Recorder, watched: OptimizerTrace | None, name: str, files: Sequence[str], error: BaseException | None = None
) -> Workload:
    """The training of one optimizer. `error`: what the script raised; the call that did is its last batch. Raises ReplayMismatch."""
    failed = recorder.tape.failed[0] if recorder.tape.failed is not None and recorder.tape.failed[1] is error else None
    taken = _steps(recorder, watched) if recorder.backwards or failed is None else Taken()
    ids = watched.ids if watched is not None else recorder.tape.weights.keys()
    held = frozenset(w.key for key, w in recorder.tape.weights.items() if key in ids)
    if recorder.tape.failure:
        copied = not recorder.tape.failure.startswith("the optimizer")
        raise ReplayMismatch(f"{'what its loss is made of' if copied else 'its optimizer'} could not be copied", recorder.tape.failure)
    if watched is not None and any(w.changes is not None and w.copy is None for w in watched.members):
        raise ReplayMismatch("its weights are changed by a rule that gradcheck does not know")
    slices = taken.slices(held)
    slices += [Slice([Ref(failed, 0)], held)] if failed is not None else []
    owners = _owners(slices)
    if not owners:
        raise ReplayMismatch("its loss depends on no module and no parameter that was seen in use")
    roots = [o.original for o in owners]
    programs = [Program(s, roots) for s in slices]
    others = [o for o in recorder.owners.current.values() if all(o.original is not x.original for x in owners)]
    data = first_given(slices[0].nodes)
    with untouched(), torch.enable_grad(), time_first_calls() as calls:
        twins = twins_of(owners, others, programs[0], taken.passes[0] if taken.passes else ())
    axis = samples_axis(slices[0].nodes, calls)
    if axis:
        programs = [Program(s, roots, axis) for s in slices]
    _freeze_others(recorder, watched, twins)
    if twins.tensors and not any(t.requires_grad for t in twins.tensors.values()):
        raise ReplayMismatch("its loss depends on nothing that the optimizer trains")
    labels = [o.label for o in (*owners, *twins.outside)]
    model, helpers = _model(labels, [*twins.modules, *(o.original for o in twins.outside)], len(owners))
    batches = [(*p.entries, p) for p in programs]
    filled = {id(twins.tensors[key]) for w in (watched.members if watched is not None else ()) for key in w.filled & twins.tensors.keys()}
    optimizer, given, said = _optimizer(recorder, watched, model, twins)
    assumptions = [Assumption("data", f"data: {_count(len(batches))} that the script trained on", given=True), said]
    if twins.borrowed is not None:
        assumptions.append(Assumption("model", f"the script's own modules are measured, since {twins.borrowed.why}", given=True))
    sites = recorder.sites.living()
    sites |= {id(twins.tensors[key]): place for key, place in recorder.forgotten.places.items() if key in twins.tensors}
    if watched is not None and watched.site is not None:
        sites[id(optimizer)] = watched.site
    return Workload(
        name=name,
        model=model,
        batches=batches,
        inputs=frozenset(programs[0].data),
        made=frozenset(programs[0].made),
        one_pass=taken.one_pass,
        own_past=any(s.uses_own_past() for s in slices[-2:]),
        training_step=functools.partial(replay, helpers),
        collated=data is not None and data.chosen,
        optimizer=optimizer,
        optimizer_given=given,
        assumptions=assumptions,
        sites=sites,
        files=files,
        clip=_clipping(recorder, watched),
        device=next((p.device for p in model.parameters()), torch.device("cpu")),
        checked=True,
        borrowed=twins.borrowed,
        filled=frozenset(name for name, p in model.named_parameters() if id(p) in filled),
    )


def _steps(recorder: Recorder, watched: OptimizerTrace | None) -> Taken:
    """The taped steps; of one pass over the data, where there are enough."""
    if watched is None or not watched.steps:
        passes = [p for p in (watched.live if watched is not None else recorder.unclaimed) if p.ref is not None]
        found: list[tuple[list[BackwardPass], int | None, int, int]] = [([p], None, 0, -1) for p in passes[: recorder.taped]]
    else:
        found = [(s.passes, s.fingerprint, s.epoch, s.since) for s in watched.steps[: recorder.taped] if s.passes]
    found = [f for f in found if all(p.ref is not None for p in f[0])]
    if not found:
        raise ReplayMismatch("what backward() is called on was not computed from the model by operations that gradcheck can see")
    if found[0][0][0].unknown:
        raise ReplayMismatch("its loss depends on a function whose inside torch does not show, such as a custom autograd function")
    if any(p.gradient_given for p in found[0][0]):
        raise ReplayMismatch("backward() is given a gradient, so that there is no single loss to compute again")
    first = [f for f in found if f[2] == found[0][2]]
    found = first if len(first) >= FEW_BATCHES else found
    usual = max(len(f[0]) for f in found)
    different: dict[Any, tuple[list[BackwardPass], int]] = {}
    for number, (passes, fingerprint, _, since) in enumerate(found):
        if len(passes) == usual or not number:
            different.setdefault(fingerprint if fingerprint is not None else (number,), (passes, since))
    loaders = [loader for loader, count in recorder.loaders.values() if count]
    one_pass = 0 < found[0][2] == found[-1][2] and all(map(_hands_out_once, loaders))
    return Taken([passes for passes, _ in different.values()], [since for _, since in different.values()], one_pass)


def _hands_out_once(loader: Any) -> bool:
    """What the user's own samplers do is not known: those of classes and episodes draw samples again."""
    samplers = [x for name in ("sampler", "batch_sampler") if (x := getattr(loader, name, None)) is not None]
    known = all(type(x).__module__.startswith("torch.") and not isinstance(x, WeightedRandomSampler) for x in samplers)
    return known and not getattr(samplers[0] if samplers else None, "replacement", False)


def _owners(slices: Sequence[Slice]) -> list[Owner]:
    """Each root as it was when its parameters were last changed before the first loss: by another optimizer, say."""
    found: dict[int, Owner] = {}
    for part in slices:
        here: dict[int, Owner] = {}
        for owner in part.owners:
            known = here.get(id(owner.original))
            if known is None or known.versions[:1] != owner.versions[:1]:
                here[id(owner.original)] = owner
        found = {**here, **found}
    return list(found.values())


def _model(labels: Sequence[str], modules: Sequence[nn.Module], called: int) -> tuple[nn.Module, Helpers]:
    """One model that holds all of them. The loop calls the first `called` of them."""
    if len(modules) == 1:
        return modules[0], Helpers(())
    names = tuple(f"{label}_" if hasattr(nn.Module(), label) else label for label in labels)
    return Models(dict(zip(names, modules, strict=True))), Helpers(names[:called])


def _freeze_others(recorder: Recorder, watched: OptimizerTrace | None, twins: Twins) -> None:
    """Freezes the parameters that only other optimizers of the script train."""
    if watched is not None:
        twins.freeze({key for w in recorder.optimizers.values() if w not in watched.members for key in w.ids} - watched.ids)


def _optimizer(
    recorder: Recorder, watched: OptimizerTrace | None, model: nn.Module, twins: Twins
) -> tuple[torch.optim.Optimizer, bool, Assumption]:
    if watched is None:
        assumed, said = assumed_optimizer(None)(model)
        return assumed, False, said
    made = [_as_the_script_uses_it(w, twins, recorder.bounds) for w in watched.members]
    text = ", and ".join(words for _, words in made)
    return as_one([optimizer for optimizer, _ in made]), True, Assumption("optimizer", f"optimizer: {text}", given=True)


def _as_the_script_uses_it(watched: OptimizerTrace, twins: Twins, bounds: Bounds) -> tuple[torch.optim.Optimizer, str]:
    """A copy that has the rates and the state it has in the script, and a description of it."""
    optimizer = _copied_optimizer(watched, twins)
    text = f"{type(optimizer).__name__} {_origin(watched)}"
    life = watched.life
    if life is not None and watched.forgets:
        Forgetting.attach(optimizer, life)
    ids = watched.ids
    kept = [(w, p) for key, w in twins.tensors.items() if key in ids for p in bounds.of(key, len(watched.steps))]
    if kept:
        optimizer.register_step_post_hook(Projections(kept).after)
        text += f", {len({id(w) for w, _ in kept})} weights put back within bounds after each step"
    if any(watched.options):
        optimizer.register_step_pre_hook(StepOptions(watched.options).before)
    rates = [s.rates for s in watched.steps]
    schedule = Schedule.of(rates)
    if schedule is None:
        return optimizer, f"{text}, lr {rate_of(optimizer):g}"
    for group, rate in zip(optimizer.param_groups, schedule.peaks, strict=True):
        group["lr"] = rate
    optimizer.register_step_pre_hook(schedule.before)
    optimizer.register_step_post_hook(schedule.after)
    return optimizer, f"{text}, its rate as the script sets it over {len(rates)} steps, {rate_of(optimizer):g} at most"


def _origin(watched: OptimizerTrace) -> str:
    if watched.changes is None:
        return f"`{watched.label or 'optimizer'}` of the script"
    place = f" in line {watched.step_site.line}" if watched.step_site is not None else ""
    return f"(the rule that the script's update{place} follows)"


def _copied_optimizer(watched: OptimizerTrace, twins: Twins) -> torch.optim.Optimizer:
    """The optimizer as it was before its first step, with the parameters that are trained here. One that took no step is as it was."""
    if watched.copy is None:
        return copy_optimizer(watched.optimizer, {**twins.memo, **twins.tensors})
    held = [p for group in watched.copy.param_groups for p in group["params"]]
    own = {id(p): twins.tensors[key] for p, key in zip(held, watched.keys, strict=True) if key in twins.tensors}
    return copy_optimizer(watched.copy, {**twins.memo, **own})


def _clipping(recorder: Recorder, watched: OptimizerTrace | None) -> Clipping | None:
    """The clipping that acts on the gradients of this optimizer's steps."""
    if watched is None:
        return None
    acting = [c for c in recorder.journal.clips.values() if {id(w) for w in watched.members} & c.owners and _acts(c)]
    found = acting[0] if acting else None
    return Clipping(found.kind, found.threshold, found.site) if found is not None else None


def _acts(clip: ClipCalls) -> bool:
    return clip.calls > clip.late + clip.early + clip.foreign + clip.empty and 0 < clip.threshold < math.inf


def _count(number: int) -> str:
    return f"{number} batch{'es' if number != 1 else ''}"
