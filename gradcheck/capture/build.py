"""From a recorded loop to a Workload: the model as it was before training, its batches, and a step that computes the same loss."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gradcheck.capture.events import Clip, Pass, Watched
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.replay import Helpers, Models, Program, Slice, replay
from gradcheck.capture.schedule import Schedule
from gradcheck.capture.tape import Owner, Ref
from gradcheck.measure.fork import copy_optimizer
from gradcheck.nouns.measurement import Assumption
from gradcheck.target.copying import memo_for
from gradcheck.target.optimizers import assumed_optimizer, rate_of
from gradcheck.target.workload import Clipping, Workload

SAME = 1e-3  # relative difference up to which a replayed loss is the recorded one: half precision leaves more than float32
FEW_BATCHES = 4  # of one pass over a loader; with fewer, those of the next passes are taken too


@dataclass
class Unfaithful(Exception):
    """The loss could not be computed again; `why` says what stood in the way."""

    why: str

    def __str__(self) -> str:
        return self.why


def workload_of(
    recorder: Recorder, watched: Watched | None, name: str, files: Sequence[str], error: BaseException | None = None
) -> Workload:
    """The training of one optimizer. `error`: what the script raised; the call that did is its last batch. Raises Unfaithful."""
    failed = recorder.tape.failed[0] if recorder.tape.failed is not None and recorder.tape.failed[1] is error else None
    steps = _steps(recorder, watched) if recorder.backwards or failed is None else []
    held = watched.ids if watched is not None else frozenset(recorder.tape.weights)
    if recorder.tape.failure:
        raise Unfaithful(recorder.tape.failure)
    slices = [Slice([p.ref for p in passes if p.ref is not None], held) for passes in steps]
    slices += [Slice([Ref(failed, 0)], held)] if failed is not None else []
    owners = _owners(slices)
    if not owners:
        raise Unfaithful("the loss comes from no module and no parameter of the script")
    roots = [o.original for o in owners]
    programs = [Program(s, roots) for s in slices]
    with torch.enable_grad():
        if steps:
            _check(programs[0], [o.copy for o in owners], steps[0])
    memo: dict[int, Any] = {}  # each training has copies of its own: what one trains, the other one freezes
    for owner in owners:
        memo |= memo_for(owner.copy)
    copies = [copy.deepcopy(o.copy, memo) for o in owners]
    _freeze_others(recorder, watched, owners, memo)
    model, helpers = _model([o.label for o in owners], copies)
    batches = [(*p.entries, p) for p in programs]
    optimizer, given, said = _optimizer(watched, model, owners, memo)
    sites = recorder.sites.living()
    if watched is not None and watched.site is not None:
        sites[id(optimizer)] = watched.site
    return Workload(
        name=name,
        model=model,
        batches=batches,
        training_step=functools.partial(replay, helpers),
        optimizer=optimizer,
        optimizer_given=given,
        assumptions=[Assumption("data", f"data: {_count(len(batches))} that the script trained on", given=True), said],
        sites=sites,
        files=files,
        clip=_clipping(recorder, watched),
        device=next((p.device for p in model.parameters()), torch.device("cpu")),
    )


def _steps(recorder: Recorder, watched: Watched | None) -> list[list[Pass]]:
    """The passes of each taped step; of one pass over the data, where there are enough."""
    if watched is None or not watched.steps:
        passes = [p for p in (watched.live if watched is not None else recorder.unclaimed) if p.ref is not None]
        found: list[tuple[list[Pass], int | None, int]] = [([p], None, 0) for p in passes[: recorder.taped]]
    else:
        found = [(s.passes, s.fingerprint, s.epoch) for s in watched.steps[: recorder.taped] if s.passes]
    found = [f for f in found if all(p.ref is not None for p in f[0])]
    if not found:
        raise Unfaithful("its loss does not come from a call that was recorded")
    if found[0][0][0].unknown:
        raise Unfaithful("it depends on a result of a function that torch does not show, such as a custom autograd function")
    if any(p.gradient_given for p in found[0][0]):
        raise Unfaithful("backward() is called on more than a loss")
    first = [f for f in found if f[2] == found[0][2]]
    found = first if len(first) >= FEW_BATCHES else found
    usual = max(len(f[0]) for f in found)
    different: dict[Any, list[Pass]] = {}
    for number, (passes, fingerprint, _) in enumerate(found):
        if len(passes) == usual or not number:
            different.setdefault(fingerprint if fingerprint is not None else (number,), passes)
    return list(different.values())


def _owners(slices: Sequence[Slice]) -> list[Owner]:
    found: dict[int, Owner] = {}
    for part in slices:
        for owner in part.owners:
            found.setdefault(id(owner.original), owner)
    return list(found.values())


def _model(labels: Sequence[str], copies: Sequence[nn.Module]) -> tuple[nn.Module, Helpers]:
    if len(copies) == 1:
        return copies[0], Helpers(())
    names = tuple(f"{label}_" if hasattr(nn.Module(), label) else label for label in labels)
    return Models(dict(zip(names, copies, strict=True))), Helpers(names)


def _check(program: Program, copies: Sequence[nn.Module], passes: Sequence[Pass]) -> None:
    """Computes the first loss again. Raises Unfaithful when it is another one."""
    buffers = [(b, b.detach().clone()) for c in copies for b in c.buffers()]
    try:
        value = float(program.run(copies, program.entries, random=True).detach().sum())
    except Exception as error:
        raise Unfaithful(f"computing it again raises {type(error).__name__}: {error}") from error
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)
    wanted = float(sum(float(p.loss.float().sum()) for p in passes))
    if math.isfinite(wanted) and abs(value - wanted) > SAME * max(abs(wanted), 1e-3):
        raise Unfaithful(f"computing it again gives {value:.6g} where the script had {wanted:.6g}")


def _freeze_others(recorder: Recorder, watched: Watched | None, owners: Sequence[Owner], memo: dict[int, Any]) -> None:
    """Parameters that only other optimizers of the script train are given to this training as they are."""
    if watched is None:
        return
    others = {key for w in recorder.optimizers.values() if w is not watched for key in w.ids} - watched.ids
    for owner in owners:
        for key in others & owner.memo.keys():
            twin = memo.get(id(owner.memo[key]))
            if isinstance(twin, torch.Tensor):
                twin.requires_grad_(False)


def _optimizer(
    watched: Watched | None, model: nn.Module, owners: Sequence[Owner], memo: dict[int, Any]
) -> tuple[torch.optim.Optimizer, bool, Assumption]:
    if watched is None:
        made, said = assumed_optimizer(None)(model)
        return made, False, said
    optimizer = copy_optimizer(watched.copy, memo) if watched.copy is not None else _never_stepped(watched, owners, memo)
    text = f"optimizer: {type(optimizer).__name__} `{watched.label or 'optimizer'}` of the script"
    rates = [s.rates for s in watched.steps]
    schedule = Schedule.of(rates)
    if schedule is not None:
        for group, rate in zip(optimizer.param_groups, schedule.peaks, strict=True):
            group["lr"] = rate
        optimizer.register_step_pre_hook(schedule.before)
        optimizer.register_step_post_hook(schedule.after)
        text += f", its rate as the script's scheduler sets it over {len(rates)} steps, {rate_of(optimizer):g} at most"
    else:
        text += f", lr {rate_of(optimizer):g}"
    return optimizer, True, Assumption("optimizer", text, given=True)


def _never_stepped(watched: Watched, owners: Sequence[Owner], memo: dict[int, Any]) -> torch.optim.Optimizer:
    """An optimizer that took no step is as it was."""
    originals = {key: memo.get(id(twin), twin) for o in owners for key, twin in o.memo.items()}
    return copy_optimizer(watched.optimizer, {**memo, **originals})


def _clipping(recorder: Recorder, watched: Watched | None) -> Clipping | None:
    """The clipping that acts on the gradients of this optimizer's steps."""
    if watched is None:
        return None
    acting = [c for c in recorder.clips.values() if id(watched.optimizer) in c.owners and _acts(c)]
    found = acting[0] if acting else None
    return Clipping(found.kind, found.threshold, found.site) if found is not None else None


def _acts(clip: Clip) -> bool:
    return clip.calls > clip.late + clip.early + clip.foreign + clip.empty and 0 < clip.threshold < math.inf


def _count(number: int) -> str:
    return f"{number} batch{'es' if number != 1 else ''}"
