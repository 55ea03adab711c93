"""From what the recorder noted to the plain numbers of `LoopFacts`; and what a loss is made of, read off its recorded calls."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

import torch

from gradcheck.capture.events import BackwardPass, OptimizerTrace, Step
from gradcheck.capture.nodes import Constant, Loose, Node, Ref, Weight, nodes_behind
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.replay import calls_behind
from gradcheck.capture.silent import silent_terms
from gradcheck.capture.together import adversary, is_played_against, opponents
from gradcheck.capture.weighting import weighed, weighting
from gradcheck.instrument.loader_batches import shape_of
from gradcheck.instrument.loss_calls import reduction_of as reduction_given
from gradcheck.types.location import Location
from gradcheck.types.loop import NEVER_EVALUATED, LoopBatches, LoopFacts, LoopPairing, LoopScaler, LoopThawed
from gradcheck.workload.dtensor import local
from gradcheck.workload.source_sites import display_path, origin_of

FEWEST_COMPARED = 8  # steps: fewer are a warm-up, or a search that goes back
DIVISIONS = frozenset(("__truediv__", "div", "true_divide", "divide", "div_", "__itruediv__"))
PRODUCTS = frozenset(("__mul__", "__rmul__", "mul", "multiply", "mul_", "__imul__"))
SAME = frozenset(("requires_grad_", "float", "to", "squeeze", "clone", "contiguous", "view", "reshape"))
SUMS = frozenset(("__add__", "__radd__", "add", "__iadd__", "add_"))
MEANS = frozenset(("mean", "nanmean"))


def scale_of(ref: Ref) -> float | None:
    """The factor that a loss has been given after its mean was taken; None when what is scaled is not a mean, or cannot be told."""
    factor, node = 1.0, ref.node
    for _ in range(50):
        name = getattr(node.call, "__name__", "")
        if node.call is None:
            return None if "num_items_in_batch" in node.kwargs else factor
        operands = list(node.args[:2])
        live = [x for x in operands if isinstance(x, Ref)]
        if name in SUMS and live:
            node = live[0].node
            continue
        if name in DIVISIONS | PRODUCTS and len(live) == 1 and isinstance(operands[0], Ref | float | int):
            other = number_of(next((x for x in operands if not isinstance(x, Ref)), None))
            if other is None or not other:
                return None
            factor = factor / other if name in DIVISIONS else factor * other
        elif name not in SAME or not live:
            return factor if _is_mean(node, name) else None
        node = live[0].node
    return None


def _is_mean(node: Node, name: str) -> bool:
    if name in MEANS:
        return True
    return is_loss(name) and reduction_of(node) == "mean"


def is_loss(name: str) -> bool:
    return "loss" in name or name.endswith(("cross_entropy", "kl_div", "_with_logits"))


def reduction_of(node: Node) -> str:
    return reduction_given(node.call, node.args, node.kwargs) if node.call is not None else "mean"


def number_of(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Constant) and value.value.numel() == 1:
        return float(value.value.item())
    return None


THAWED = 4  # steps whose losses reach a weight that was frozen: fewer may look at it only


@dataclass(frozen=True)
class Ending:
    """How the run of the loop ended."""

    how: Literal["stopped", "budget", "end", "raised", "exit"] = "stopped"
    error: str = ""
    site: Location | None = None
    further: Location | None = None  # of a training that it was ended before


def loop_facts(recorder: Recorder, watched: OptimizerTrace | None, ending: Ending) -> LoopFacts:
    """The loop as one optimizer saw it; without one, the loop of a script whose optimizers never stepped.

    Of several that step together, the one whose gradients or rates the loop treats worst is described.
    """
    if watched is not None and watched.parts:
        told = [loop_facts(recorder, w, ending) for w in watched.parts]
        worst = max(told, key=_trouble)
        clips = tuple(dict.fromkeys(clip for facts in told for clip in facts.clips or ()))
        moved = sum(facts.moved or 0 for facts in told)
        label = worst.optimizer if _trouble(worst) else watched.label
        return replace(worst, optimizer=label, parameters=len(watched.parameters), moved=moved, clips=clips)
    base: dict[str, Any] = {"ended": ending.how, "error": ending.error, "backward_site": recorder.backward_site}
    if watched is None:
        return LoopFacts("", 0, recorder.backwards, moved=_moved(recorder, None), **base | _without_steps(recorder))
    steps = watched.steps
    beside = 0 if steps else sum(len(w.steps) for w in recorder.optimizers.values())
    every = [p for s in steps for p in s.passes] or (watched.cleared if beside else watched.live)
    site = next((p.place for p in every if p.place is not None), recorder.backward_site)
    own = LoopFacts(
        steps=len(steps),
        backwards=len(every) if steps or beside else recorder.backwards,
        beside=beside,
        parameters=len(watched.parameters),
        moved=_moved(recorder, watched),
        losses=tuple(watched.losses),
        rates=tuple(s.rate for s in steps),
        base_rate=watched.base_rate or 0.0,
        leftover=sum(s.leftover for s in steps),
        lost=sum(s.lost for s in steps),
        accumulated=_accumulated(steps),
        weight=_weight(steps) if watched.changes is None else None,
        dropped=sum(s.dropped for s in steps),
        clips=recorder.journal.clips_of(watched),
        scaler=_scaler(recorder, steps),
        evaluation=watched.evaluations.record(next((p for p in recorder.journal.eval_sites.values() if p is not None), None)),
        batches=_batches(recorder, steps),
        by_hand=watched.changes is not None,
        over=_is_over(recorder, steps),
        made_site=watched.site if watched.changes is None else None,
        averages=recorder.averages.facts(watched.ids, frozenset().union(*(p.reached for p in every))),
        silent=silent_terms(recorder.tape.silent, every),
        retained=recorder.retained.most({p.place for p in every}),
        weighting=weighting(weighed(s.passes) for s in steps if not (s.leftover or s.edited)),
        leak=recorder.leaks.found(),
        thawed=_thawed(recorder, watched),
        undone=undone(recorder, watched),
        put_back_site=watched.put_back,
        remade=recorder.remade.found(),
        reads=recorder.reads.found([loader for loader, _ in recorder.loaders.values()]),
        pairing=_pairing(recorder, every),
        adversary=adversary(watched, recorder.optimizers.values()),
        played_against=is_played_against(watched, recorder.optimizers.values()),
        opposed=any(True for _ in opponents(watched, recorder.optimizers.values())),
        **recorder.journal.facts(watched),
        **base | {"backward_site": site},
    )
    return own


def _is_over(recorder: Recorder, steps: Sequence[Step]) -> bool:
    numbers = [s.number for s in steps]
    last = max((w.steps[-1].number for w in recorder.optimizers.values() if w.steps), default=0)
    pause = max((b - a for a, b in pairwise(numbers)), default=0)
    return bool(pause) and last - numbers[-1] > max(pause, FEWEST_COMPARED)


def _pairing(recorder: Recorder, passes: Sequence[BackwardPass]) -> LoopPairing | None:
    taped = (nodes_behind(p.nodes) for p in passes if p.ref is not None)
    return recorder.tape.lineage.pairing(taped, (loader.dataset for loader, _ in recorder.loaders.values()))


def _without_steps(recorder: Recorder) -> dict[str, Any]:
    clips = tuple(c.record() for c in recorder.journal.clips.values())
    counts: dict[str, Any] = {"leftover": 0, "lost": 0, "accumulated": 1, "dropped": 0, "rates": ()}
    counts["loads"] = tuple(load for load, _ in recorder.journal.loads.values())
    counts |= {"schedules": recorder.journal.schedulers.calls, "made": 1, "schedules_made": 0, "schedulers": ()}
    return counts | {"clips": clips, "scaler": _scaler(recorder, ()), "evaluation": NEVER_EVALUATED}


def _trouble(facts: LoopFacts) -> float:
    """How far the loop's treatment of an optimizer is out of the ordinary, as a number to compare optimizers by."""
    rates = facts.rates or ()
    peak = max(rates, default=0.0)
    fallen = 1 - rates[-1] / peak if peak else float(bool(rates))
    return 2 * ((facts.leftover or 0) + (facts.lost or 0)) / max(1, facts.steps) + bool(facts.forgets) + round(fallen, 2)


def _moved(recorder: Recorder, watched: OptimizerTrace | None) -> int | None:
    """Parameters that are no longer what they were before training."""
    wanted = watched.ids if watched is not None else None
    weights = [w for key, w in recorder.tape.weights.items() if wanted is None or key in wanted]
    if not weights:
        return None
    first = watched.memo if watched is not None else {}  # the root may have been copied again since, for another training
    return len(changed(weights, first))


def _thawed(recorder: Recorder, watched: OptimizerTrace) -> LoopThawed | None:
    reached = [frozenset[int]().union(*(p.reached for p in s.passes)) for s in watched.steps]
    if not reached:
        return None
    held = {id(p) for w in recorder.optimizers.values() for p in w.parameters}
    late = Counter(key for keys in reached for key in keys - reached[0] - held)
    weights = [w for key, n in late.items() if n >= THAWED and (w := recorder.tape.weights.get(key)) is not None]
    moved = set(map(id, changed(weights, watched.memo)))
    found = [w for w in weights if not w.owner.before(w).requires_grad and id(w) not in moved]
    step = next((i for i, keys in enumerate(reached) for w in found if w.key in keys), 0)
    return LoopThawed(tuple(w.name for w in found), step) if found else None


def changed(weights: Sequence[Weight], first: Mapping[int, Any]) -> list[Weight]:
    """Those that are no longer what they were. `first`: copies, by id, that go before those of their owners."""
    roots = {id(w.owner.original): w.owner.original for w in weights}
    named = {key: dict(root.named_parameters()) for key, root in roots.items() if not isinstance(root, Loose)}

    def differs(weight: Weight) -> bool:
        root = weight.owner.original
        now = root.tensors.get(weight.key) if isinstance(root, Loose) else named[id(root)].get(weight.name)
        before = first[weight.key] if weight.key in first else weight.owner.before(weight)
        return now is None or now.shape != before.shape or not torch.equal(local(now.detach()), local(before.detach()))

    return list(filter(differs, weights))


def undone(recorder: Recorder, watched: OptimizerTrace) -> float | None:
    """Share of the steps whose changes are put back. None: too few were compared, or another optimizer takes the same weights further."""
    ids = set(map(id, watched.parameters))
    shared = any(w is not watched and not ids.isdisjoint(map(id, w.parameters)) for w in recorder.optimizers.values())
    return None if shared or len(watched.undone) < FEWEST_COMPARED else sum(watched.undone) / len(watched.undone)


def _same_line(step: Step) -> list[BackwardPass]:
    """The passes of a step from the line that ran most of them."""
    places = Counter(p.place for p in step.passes)
    place = places.most_common(1)[0][0] if places else None
    return [p for p in step.passes if p.place == place and _shape(p) == _shape(step.passes[0])]


def _shape(found: BackwardPass) -> tuple[Any, ...]:
    """What a pass ran: the modules, and the shapes they were given, but for the number of samples."""
    if found.ref is None:
        return ()
    calls = calls_behind(found.ref.node)
    return tuple((n.path, tuple(shape_of(c.value)[1:] for c in n.constants())) for n in calls)


def _accumulated(steps: Sequence[Step]) -> int:
    counts = Counter(len(_same_line(s)) for s in steps if s.passes)
    return counts.most_common(1)[0][0] if counts else 1


def _weight(steps: Sequence[Step]) -> float | None:
    usual = _accumulated(steps)
    step = next((s for s in steps if usual > 1 and len(_same_line(s)) == usual), None)
    if step is None or any(s.edited for s in steps):
        return None
    scales = [scale_of(p.ref) if p.ref is not None and not p.gradient_given else None for p in _same_line(step)]
    return sum(s for s in scales if s is not None) if None not in scales else None


def _scaler(recorder: Recorder, steps: Sequence[Step]) -> LoopScaler:
    scaler = recorder.journal.scaler
    if scaler is not None and not scaler.enabled:
        return recorder.journal.scaling(sum(not s.by_scaler for s in steps) * bool(scaler.scaled))
    return recorder.journal.scaling(sum(s.bare for s in steps))


def _batches(recorder: Recorder, steps: Sequence[Step]) -> LoopBatches | None:
    seen = [s.fingerprint for s in steps if s.fingerprint is not None]
    first, since = next(((p, s.since) for s in steps for p in s.passes if p.ref is not None), (None, -1))
    if not seen or first is None or first.ref is None:
        return None
    call = calls_behind(first.ref.node, since)[0]
    constant = next((c for c in call.constants() if c.value.dim()), None)
    samples = shape_of(constant.value)[0] if constant is not None else 0
    found = recorder.journal.batches(len(seen), len(set(seen)), samples, constant.rows if constant is not None else None, call.place)
    return replace(found, reading=_reading(loader for loader, _ in recorder.loaders.values()))


def _reading(loaders: Iterable[Any]) -> Location | None:
    """Where the user's data set gives a sample, if only one does."""
    codes = {getattr(getattr(type(loader.dataset), "__getitem__", None), "__code__", None) for loader in loaders}
    own = [code for code in codes if code is not None and origin_of(code.co_filename) == "user"]
    return Location.at(display_path(own[0].co_filename), own[0].co_firstlineno) if len(own) == 1 else None
