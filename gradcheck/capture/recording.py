"""The state of a recording that is in progress: what the recorder's parts share, defined below them."""

from collections.abc import Callable
from threading import get_ident
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer
from torch.utils.data import DataLoader

from gradcheck.capture.bounds import Bounds
from gradcheck.capture.events import BackwardPass, OptimizerTrace
from gradcheck.capture.root_modules import RootModules
from gradcheck.capture.tape import Tape
from gradcheck.instrument.averages import Averages
from gradcheck.instrument.loop_journal import LoopJournal, Modes
from gradcheck.types.location import Location
from gradcheck.workload.source_sites import Sites

Observer = Callable[[Any], None]


class Recording:
    """`taped`: steps of each optimizer whose computations are kept. `observer` is called after each backward pass and each step."""

    def __init__(self, sites: Sites, taped: int, observer: Observer) -> None:
        self.sites, self.taped, self.observer = sites, taped, observer
        self.tape = Tape()
        self.owners = RootModules(sites, self.tape)
        self.tape.unowned = self._find_owner
        self.optimizers: dict[int, OptimizerTrace] = {}
        self.stepping: OptimizerTrace | None = None  # inside its step
        self.loaders: dict[int, tuple[DataLoader[Any], int]] = {}  # a loader, and how often it was iterated over
        self.backwards = 0
        self.steps = 0  # of all optimizers
        self.idle = 0  # those before any backward pass: a look at a schedule
        self.beginning: list[OptimizerTrace] = []  # what is about to be trained for the first time
        self.unclaimed: list[BackwardPass] = []  # that reach no known optimizer
        self.asked: list[BackwardPass] = []  # whose gradients were given back, since the last step that used such
        self.losses: list[tuple[Location | None, torch.Tensor]] = []  # of every pass, with the place of its backward()
        self.newest: BackwardPass | None = None  # since the last step of any optimizer
        self.connected = False  # some pass reached a parameter of an optimizer
        self.journal = LoopJournal(lambda: self.optimizers, self.watched, lambda: bool(self.busy))
        self.bounds = Bounds(lambda: self.optimizers.values())
        self.averages = Averages(sites.modules, self._trained, sites.get)
        self.backward_site: Location | None = None
        self.modes = Modes()
        self.unfollowed: dict[int, Location | None] = {}  # by id of a module whose last call was without gradients: where that was
        self.thread = get_ident()  # whose computations are recorded
        self.busy = 0  # inside a backward pass, a step, or gradcheck's own code
        self.depth = 0  # of calls of modules, counted from the outermost that holds something

    def fail(self, error: Exception) -> None:
        """The user's call is not to fail for being recorded: the recording ends."""
        self.tape.failure = self.tape.failure or f"{type(error).__name__}: {error}"
        self.tape.recording = False

    def follow(self) -> None:
        """Records this thread from now on."""
        raise NotImplementedError

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

    def _trained(self) -> frozenset[int]:
        return frozenset[int]().union(*(w.ids for w in self.optimizers.values()))

    def _find_owner(self, tensor: torch.Tensor) -> None:
        """A parameter is used by itself before the module that holds it has run, or is not held by one."""
        self.owners.refresh(tensor)
        if isinstance(tensor, nn.Parameter) or any(id(tensor) in w.ids for w in self.optimizers.values()):
            self.busy += 1
            try:
                self.owners.own([tensor])
            finally:
                self.busy -= 1
