"""Filing the steps of an optimizer: from which passes each was taken, and how its gradients got there."""

from gradcheck.capture.events import BackwardPass, OptimizerTrace, Step
from gradcheck.capture.recording import Recording
from gradcheck.capture.replay import calls_behind
from gradcheck.capture.together import gradient_size
from gradcheck.instrument.loader_batches import digest
from gradcheck.instrument.loop_journal import is_filled

AHEAD = 12  # steps of one optimizer, a critic's say, after which the first step of another one is no longer waited for
LOOKED_AT = 4  # steps whose gradients are looked at: state that a model keeps shows from the second one on


class StepLog:
    """`note` when a step is about to be taken, or, with a closure, was taken; `taken` when it is over."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def note(self, watched: OptimizerTrace) -> None:
        recording = self.recording
        asked = [] if watched.live else [p for p in recording.asked if p.reached & watched.ids]
        passes, lost = (asked, False) if asked else self._passes(watched)
        recording.asked = [p for p in recording.asked if not p.reached & watched.ids]
        recording.backwards += len(asked)
        watched.evaluations.note(len(watched.steps), recording.modes.take(watched.ids), bool(passes))
        factor = next((p.factor for p in passes if p.factor != 1), 1.0)
        rates = tuple(float(g.get("lr") or 0.0) for g in watched.optimizer.param_groups)
        by_scaler = recording.journal.by_scaler
        same = {p.place for p in passes}
        if len(watched.steps) < LOOKED_AT:
            watched.filled.update(id(p) for p in watched.parameters if is_filled(p))
        since = watched.last_call()
        watched.steps.append(
            Step(
                passes=passes,
                rate=max(rates, default=0.0),
                rates=rates,
                leftover=watched.dirty and bool(watched.steps) and not asked,
                lost=lost,
                dropped=not lost and any(p.place in same for p in watched.cleared),
                bare=factor != 1 and not watched.unscaled and not by_scaler,
                by_scaler=by_scaler,
                fingerprint=_fingerprint(passes, since),
                since=since,
                epoch=sum(count for _, count in recording.loaders.values()),
                number=recording.steps,
                edited=watched.edited(),
                gradient=gradient_size(watched.parameters) if len(recording.optimizers) > 1 else None,
                near=recording.newest if not passes and len(watched.steps) < recording.taped else None,
            )
        )
        for found in () if lost else passes:
            found.used = True
        recording.steps += 1
        watched.taken = len(watched.steps)
        watched.live, watched.cleared, watched.unscaled = [], [], False

    def _passes(self, watched: OptimizerTrace) -> tuple[list[BackwardPass], bool]:
        """The passes that a step belongs to, and whether their gradients were lost before it."""
        if watched.live:
            return watched.live, False
        if watched.cleared:
            return watched.cleared, True
        passes, self.recording.unclaimed = self.recording.unclaimed, []  # of a loss that does not reach this optimizer, and no other one
        return passes, False

    def taken(self, watched: OptimizerTrace) -> None:
        recording = self.recording
        watched.dirty = True
        begun = recording.beginning  # of those that are not optimizers of torch, as many as have stepped
        if all(w.steps and w.changes is None for w in begun) or any(len(w.steps) > (AHEAD if w.changes is None else 1) for w in begun):
            recording.owners.initial = False
        self._release(watched)

    def _release(self, watched: OptimizerTrace) -> None:
        """Keeps the computations of the first steps only."""
        recording = self.recording
        if len(watched.steps) > recording.taped:
            for found in watched.steps[-1].passes:
                found.ref = None
        if all(len(w.steps) >= recording.taped for w in recording.optimizers.values()):
            recording.tape.recording = False


def _fingerprint(passes: list[BackwardPass], since: int) -> int | None:
    """Of the tensors that the modules were called with after the call `since`."""
    inputs = [c.value for p in passes if p.ref is not None for n in calls_behind(p.ref.node, since) for c in n.constants()]
    return hash(tuple(map(digest, inputs))) if inputs else None
