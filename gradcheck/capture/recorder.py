"""The recorder: what a training loop does, as global hooks and thin wrappers see it, without changing it.

Nothing here knows where the loop came from: a script that gradcheck runs, or a program that asks to be watched.
What is seen where: `forward`, `backward`, `steps`, `clips`, `scalers`, `surroundings`. `points` lists where they stand.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from gradcheck.capture.averages import Averages
from gradcheck.capture.backward import Backward
from gradcheck.capture.clips import Clips
from gradcheck.capture.events import BackwardPass, Clip, OptimizerTrace, Scaler
from gradcheck.capture.forgotten import Forgotten
from gradcheck.capture.forward import Forward
from gradcheck.capture.functional import Functional
from gradcheck.capture.installation import Installation
from gradcheck.capture.modes import Modes
from gradcheck.capture.root_modules import RootModules
from gradcheck.capture.scalers import Scalers
from gradcheck.capture.schedulers import Schedulers
from gradcheck.capture.schedulers_and_loaders import SchedulersAndLoaders
from gradcheck.capture.steps import Steps
from gradcheck.capture.tape import Tape
from gradcheck.capture.updates import Updates
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import Sites


class Recorder(TorchFunctionMode):
    """Use as a context around the loop. `taped`: steps of each optimizer whose computations are kept, to be replayed.

    `observer` is called after each backward pass and each step; what it raises goes through the loop.
    """

    def __init__(self, sites: Sites, taped: int, observer: Callable[[Recorder], None] = lambda _: None) -> None:
        super().__init__()
        self.sites, self.taped, self.observer = sites, taped, observer
        self.tape = Tape()
        self.owners = RootModules(sites, self.tape)
        self.tape.unowned = self._find_owner
        self.optimizers: dict[int, OptimizerTrace] = {}
        self.loaders: dict[int, tuple[DataLoader[Any], int]] = {}  # a loader, and how often it was iterated over
        self.backwards = 0
        self.steps = 0  # of all optimizers
        self.beginning: list[OptimizerTrace] = []  # what is about to be trained for the first time
        self.unclaimed: list[BackwardPass] = []  # that reach no known optimizer
        self.asked: list[BackwardPass] = []  # whose gradients were given back, since the last step that used such
        self.losses: list[tuple[Location | None, torch.Tensor]] = []  # of every pass, with the place of its backward()
        self.newest: BackwardPass | None = None  # since the last step of any optimizer
        self.connected = False  # some pass reached a parameter of an optimizer
        self.schedulers = Schedulers(self)
        self.averages = Averages(self)
        self.backward_site: Location | None = None
        self.eval_sites: dict[int, Location | None] = {}
        self.modes = Modes()
        self.unfollowed: dict[int, Location | None] = {}  # by id of a module whose last call was without gradients: where that was
        self.busy = 0  # inside a backward pass, a step, or gradcheck's own code
        self.depth = 0  # of calls of modules, counted from the outermost that holds something
        self._clips, self._scalers, steps = Clips(self), Scalers(self), Steps(self)
        self.updates = Updates(self, steps)
        self.forgotten = Forgotten(self)
        places = SchedulersAndLoaders(self), Functional(self), self._clips, self._scalers, self.schedulers
        self._points = Installation(Forward(self), Backward(self), steps, *places)

    @property
    def clips(self) -> dict[tuple[str, Location | None], Clip]:
        return self._clips.seen

    @property
    def scalers(self) -> dict[int, tuple[Any, Scaler]]:
        return self._scalers.seen

    # ----------------------------------------------------------------- context

    def __enter__(self) -> Recorder:
        try:
            self._points.install()
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
        self._points.remove()
        self.tape.recording = False

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.busy or self.depth or self.updates.writes(function, args, kwargs) or not self.tape.recording:
            return function(*args, **kwargs)
        return self.tape.function(function, args, kwargs)

    # -------------------------------------------------------------- optimizers

    def watched(self, optimizer: Optimizer) -> OptimizerTrace:
        if id(optimizer) not in self.optimizers:
            self._register(optimizer)
        return self.optimizers[id(optimizer)]

    def _register(self, optimizer: Optimizer) -> None:
        if self._renews(optimizer):
            return
        found = OptimizerTrace(optimizer, "", self.sites.get(optimizer))
        if any(w.steps for w in self.optimizers.values()):  # another training begins, with weights that are no longer the first ones
            self.beginning, self.owners.initial = [], True
        self.beginning.append(found)
        self.optimizers[id(optimizer)] = found
        self.tape.recording = not self.tape.failure  # trainings one after another: the next one is recorded, too
        self._adopt(found)

    def _renews(self, optimizer: Optimizer) -> bool:
        """Whether it takes the place of one that was made by the same expression, for the same parameters."""
        site, ids = self.sites.get(optimizer), {id(p) for g in optimizer.param_groups for p in g["params"]}
        for key, watched in self.optimizers.items() if site is not None else ():
            if watched.site == site and watched.ids == ids and watched.changes is None:
                watched.renew(optimizer)
                self.optimizers[id(optimizer)] = self.optimizers.pop(key)
                return True
        return False

    def _adopt(self, found: OptimizerTrace) -> None:
        """Parameters that no module holds get an owner."""
        held = {id(p) for m in self.sites.modules() for p in m._parameters.values() if p is not None}
        known = self.tape.weights
        self.owners.adopt(p for p in found.parameters if id(p) not in held and id(p) not in known)

    def _find_owner(self, tensor: torch.Tensor) -> None:
        """A parameter is used by itself before the module that holds it has run."""
        if isinstance(tensor, nn.Parameter) or any(id(tensor) in w.ids for w in self.optimizers.values()):
            self.busy += 1
            try:
                self.owners.own([tensor])
            finally:
                self.busy -= 1
