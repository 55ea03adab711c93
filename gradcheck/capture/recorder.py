"""The recorder: notes what a training loop does through global hooks and thin wrappers, without changing it.

Nothing here knows where the loop came from. It listens to the events of the loop, each part to those of its subject: `backward`, `steps`,
`gradient_changes`, the journal; what else a tape needs to see, `installation` lists.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch.overrides import TorchFunctionMode

from gradcheck.capture.backward import Backward
from gradcheck.capture.forgotten import Forgotten
from gradcheck.capture.forward import Forward
from gradcheck.capture.functional import Functional
from gradcheck.capture.gradient_changes import GradientChanges
from gradcheck.capture.installation import Installation
from gradcheck.capture.leaks import Leaks
from gradcheck.capture.reads import Reads
from gradcheck.capture.recording import Recording
from gradcheck.capture.retained import Retained
from gradcheck.capture.step_log import StepLog
from gradcheck.capture.steps import Steps
from gradcheck.capture.updates import Updates
from gradcheck.instrument.loop_events import LoopListener
from gradcheck.instrument.loop_hooks import LoopHooks
from gradcheck.workload.source_sites import Sites


class Recorder(TorchFunctionMode, Recording, LoopListener):
    """Use as a context around the loop. What `observer` raises goes through the loop."""

    def __init__(self, sites: Sites, taped: int, observer: Callable[[Recorder], None] = lambda _: None) -> None:
        TorchFunctionMode.__init__(self)
        Recording.__init__(self, sites, taped, observer)
        log = StepLog(self)
        self.updates, self.forgotten = Updates(self, log), Forgotten(self)
        self.retained, self.leaks, self.reads = Retained(self), Leaks(self), Reads()
        backward = Backward(self, self.updates, self.forgotten)
        steps = Steps(self, log, self.updates)
        hooks = LoopHooks(self, self.journal, self.retained, self.leaks, backward, steps, GradientChanges(self))
        self._places = Installation(self, hooks, Forward(self, self.updates), backward, Functional(self), self.leaks, self.reads)

    def __enter__(self) -> Recorder:
        try:
            self._places.install()
            super().__enter__()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, *details: Any) -> None:
        self._remove()
        super().__exit__(*details)
        self.updates.close()

    def _remove(self) -> None:
        self._places.remove()
        self.tape.recording = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self.busy and not self.depth:
            self.bounds.look(function, args, kwargs)
        if self.busy or self.depth or self.updates.writes(function, args, kwargs) or not self.tape.recording:
            return function(*args, **kwargs)
        return self.tape.function(function, args, kwargs)

    def data_begun(self, loader: Any) -> None:
        self.loaders[id(loader)] = loader, self.loaders.get(id(loader), (loader, 0))[1] + 1

    def failed(self, error: Exception) -> None:
        """A fault of gradcheck's own, or of what it asked: the script's run ends with it, as it could not be judged."""
        raise error
