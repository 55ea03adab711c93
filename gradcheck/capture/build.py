"""From a recorded loop to a Workload: the model as it was before training, its batches, and a step that computes the same loss."""

from __future__ import annotations

import functools
import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import WeightedRandomSampler

from gradcheck.capture.events import BackwardPass, OptimizerTrace
from gradcheck.capture.layout import first_given, samples_axis, time_first_calls
from gradcheck.capture.nodes import Owner, Ref
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.replay import Helpers, Models, Program, replay
from gradcheck.capture.script_optimizer import optimizer_of
from gradcheck.capture.slices import Slice, slices_of
from gradcheck.capture.twins import ReplayMismatch, Twins, twins_of
from gradcheck.instrument.loop_journal import ClipCalls
from gradcheck.types.location import Location
from gradcheck.types.measurement import Assumption
from gradcheck.workload.process_state import untouched
from gradcheck.workload.workload import Clipping, Workload

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
    taken, slices = _slices(recorder, watched, error)
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
    optimizer, given, said = optimizer_of(watched, model, twins, recorder.bounds)
    return Workload(
        name=name,
        model=model,
        batches=[(*p.entries, p) for p in programs],
        inputs=frozenset(programs[0].data),
        made=frozenset(programs[0].made),
        one_pass=taken.one_pass,
        own_past=any(s.uses_own_past() for s in slices[-2:]),
        training_step=functools.partial(replay, helpers),
        collated=data is not None and data.chosen,
        optimizer=optimizer,
        optimizer_given=given,
        assumptions=_assumptions(len(programs), said, twins),
        sites=_sites(recorder, watched, twins, optimizer),
        files=files,
        clip=_clipping(recorder, watched),
        device=next((p.device for p in model.parameters()), torch.device("cpu")),
        checked=True,
        borrowed=twins.borrowed,
        filled=_filled(watched, twins, model),
    )


def _slices(recorder: Recorder, watched: OptimizerTrace | None, error: BaseException | None) -> tuple[Taken, list[Slice]]:
    failed = recorder.tape.failed[0] if recorder.tape.failed is not None and recorder.tape.failed[1] is error else None
    taken = _steps(recorder, watched) if recorder.backwards or failed is None else Taken()
    if recorder.tape.failure:
        copied = not recorder.tape.failure.startswith("the optimizer")
        raise ReplayMismatch(f"{'what its loss is made of' if copied else 'its optimizer'} could not be copied", recorder.tape.failure)
    if watched is not None and any(w.changes is not None and w.copy is None for w in watched.members):
        raise ReplayMismatch("its weights are changed by a rule that gradcheck does not know")
    ids = watched.ids if watched is not None else recorder.tape.weights.keys()
    held = frozenset(w.key for key, w in recorder.tape.weights.items() if key in ids)
    return taken, taken.slices(held) + ([Slice([Ref(failed, 0)], held)] if failed is not None else [])


def _assumptions(batches: int, optimizer: Assumption, twins: Twins) -> list[Assumption]:
    found = [Assumption("data", f"data: {batches} batch{'es' if batches != 1 else ''} that the script trained on", given=True), optimizer]
    if twins.borrowed is not None:
        found.append(Assumption("model", f"the script's own modules are measured, since {twins.borrowed.why}", given=True))
    return found


def _sites(recorder: Recorder, watched: OptimizerTrace | None, twins: Twins, optimizer: torch.optim.Optimizer) -> dict[int, Location]:
    """Where the user's code makes each of them, by id."""
    found = recorder.sites.living() | {id(twins.tensors[k]): at for k, at in recorder.forgotten.places.items() if k in twins.tensors}
    return found if watched is None or watched.site is None else found | {id(optimizer): watched.site}


def _filled(watched: OptimizerTrace | None, twins: Twins, model: nn.Module) -> frozenset[str]:
    """Names of parameters."""
    members = watched.members if watched is not None else ()
    filled = {id(twins.tensors[key]) for w in members for key in w.filled & twins.tensors.keys()}
    return frozenset(name for name, p in model.named_parameters() if id(p) in filled)


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


def _clipping(recorder: Recorder, watched: OptimizerTrace | None) -> Clipping | None:
    """The clipping that acts on the gradients of this optimizer's steps."""
    if watched is None:
        return None
    acting = [c for c in recorder.journal.clips.values() if {id(w) for w in watched.members} & c.owners and _acts(c)]
    found = acting[0] if acting else None
    return Clipping(found.kind, found.threshold, found.site) if found is not None else None


def _acts(clip: ClipCalls) -> bool:
    return clip.calls > clip.late + clip.early + clip.foreign + clip.empty and 0 < clip.threshold < math.inf
