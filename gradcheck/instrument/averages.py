"""Models whose weights follow those of another model (teachers, target networks), whether their buffers do, and copies left behind."""

from collections.abc import Callable, Iterable, Set
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from gradcheck.instrument.running_code import here, is_wrapper, names_in_program, variable_of
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopAverage
from gradcheck.workload.dtensor import local

SAMPLE = 4096  # entries of one weight that are compared
FOLLOWS = 0.999  # least cosine between the change of one weight and its difference from another that makes it a follower
LOOKED_AT = 8  # steps
COPIED = 0.3  # most distance of a copy from its leader after a step of it, of its size; independent draws have 1.4
MOST_PAIRS = 8  # that are followed
TAKING = ("update_bn", "reset_running_stats")  # names in programs that take running statistics anew
MOVED = 1e-6  # relative change of a buffer that rounding in the script's own arithmetic may cause


@dataclass(eq=False)
class _Pair:
    """`follower` is made like `leader`. The samples are taken right after a step of the leader's optimizer."""

    follower: nn.Module
    shell: nn.Module  # what the loop calls: the follower, or a module that only holds it
    leader: nn.Module
    name: str  # variables of the script
    leader_name: str
    buffers: dict[str, tuple[torch.Tensor, torch.Tensor]]  # of the follower and the leader, as they were when the pair was found
    follows: bool = False
    moved_at: Location | None = None  # where its weights are written to, if that was seen
    copied: bool = False  # it began with the leader's weights
    stood: int = 0  # steps through which it has been as it was; -1: it has changed
    sample: tuple[torch.Tensor, torch.Tensor] | None = None

    def fits(self) -> bool:
        """Not once adapters were put into one of them."""
        mine, other = ([p.shape for p in m.parameters()] for m in (self.follower, self.leader))
        return mine == other

    def weights(self) -> tuple[torch.Tensor, torch.Tensor]:
        pairs = list(zip(self.follower.parameters(), self.leader.parameters(), strict=True))
        mine, other = max(pairs, key=lambda p: (p[0].dim() > 1, p[0].numel()))
        return _sampled(mine), _sampled(other)

    def look(self) -> None:
        """Before the next step: what changed since the last one was done by hand."""
        if self.sample is None or self.follows:
            return
        before, other = self.sample
        if before.shape != other.shape:  # one of them is sharded
            return
        change, way = self.weights()[0] - before, other - before
        self.stood = self.stood + 1 if self.stood >= 0 and not change.any() else -1
        size = float(change.norm() * way.norm())
        if size > 0 and float(change @ way) > FOLLOWS * size and float(change.norm()) <= 1.001 * float(way.norm()):
            self.follows = True


def _sampled(weight: torch.Tensor) -> torch.Tensor:
    return local(weight).detach().reshape(-1)[:SAMPLE].cpu().double().clone()


def _address(tensor: torch.Tensor) -> int:
    """0: it has no storage, as inside of `torch.func.grad`."""
    try:
        return tensor.data_ptr()
    except (RuntimeError, NotImplementedError):
        return 0


@dataclass
class Averages:
    """`modules`: those of the program; `trained`: ids of what optimizers move; `site`: where a module is made."""

    modules: Callable[[], list[nn.Module]]
    trained: Callable[[], frozenset[int]]
    site: Callable[[nn.Module], Location | None]
    called: dict[int, Location | None] = field(default_factory=dict)  # id(module), in evaluation mode -> where it was called first
    sees_calls: bool = True  # else evaluation mode is enough
    used: dict[int, Location | None] = field(default_factory=dict)  # the same, in either mode
    unplaced: dict[int, _Pair] = field(default_factory=dict)  # address of a follower's weight, which is not known to be written to
    taken: bool = True  # the running program names one of TAKING
    _pairs: list[_Pair] | None = None
    _steps: int = 0

    def calls(self, module: nn.Module) -> None:
        """A module is called from outside all others."""
        if id(module) not in self.used:
            self.used[id(module)] = here()
        if not module.training and id(module) not in self.called:
            self.called[id(module)] = here()

    def writes(self, tensors: Iterable[torch.Tensor]) -> None:
        """The script writes to these."""
        for tensor in tensors:
            pair = self.unplaced.get(_address(tensor))
            if pair is not None:
                pair.moved_at = here()
                self.unplaced = {address: p for address, p in self.unplaced.items() if p is not pair}

    def before_step(self) -> None:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            for pair in self._pairs or ():
                if pair.fits():
                    pair.look()

    def after_step(self) -> None:
        self._steps += 1
        if self._steps > LOOKED_AT:
            self.unplaced = {}
            return
        with torch._C.DisableTorchFunction(), torch.no_grad():
            if self._pairs is None:
                self._pairs = self._found()
                self.taken = not self._pairs or names_in_program(TAKING)
                self.unplaced = {_address(p): pair for pair in self._pairs for p in pair.follower.parameters()}
                self.unplaced.pop(0, None)
            for pair in self._pairs:
                pair.sample = pair.weights() if pair.fits() else None
                if pair.sample is not None and self._steps == 1 and pair.sample[0].shape == pair.sample[1].shape:
                    pair.copied = bool((pair.sample[1] - pair.sample[0]).norm() < COPIED * pair.sample[0].norm())

    def _found(self) -> list[_Pair]:
        """Pairs of models of the same make, one of them trained by an optimizer and the other not."""
        trained = self.trained()
        alike: dict[Any, list[tuple[nn.Module, nn.Module]]] = {}
        for shell in _roots(self.modules()):
            for module in dict.fromkeys((shell, _inside(shell))):
                alike.setdefault(_signature(module), []).append((module, shell))
        found = []
        for models in alike.values():
            leaders = [m for m, _ in models if any(id(p) in trained for p in m.parameters())]
            others = [(m, shell) for m, shell in models if not any(m is x for x in leaders)]
            found += [(m, shell, leaders[0]) for m, shell in others if len(leaders) == 1]
        if len(found) > MOST_PAIRS:  # models of finished trainings may still exist; those that have a name are in use
            found.sort(key=lambda models: not variable_of(models[1]))
        return [self._pair(*models) for models in found[:MOST_PAIRS]]

    def _pair(self, follower: nn.Module, shell: nn.Module, leader: nn.Module) -> _Pair:
        other = dict(leader.named_buffers())
        buffers = {n: (b.detach().clone(), other[n].detach().clone()) for n, b in follower.named_buffers() if n in other}
        return _Pair(follower, shell, leader, variable_of(shell), variable_of(leader), buffers)

    def facts(self, trained: Set[int], reached: Set[int] | None) -> tuple[LoopAverage, ...]:
        """Of the models that follow one with these parameters. `reached`: ids of what losses send gradient to; None: what holds one."""
        mine = [p for p in self._pairs or () if any(id(x) in trained for x in p.leader.parameters())]
        return tuple(self._fact(p, reached) for p in mine if p.follows or self._left(p))

    def _left(self, pair: _Pair) -> _Pair | None:
        """A pair of other models that follow, where this one is a copy that is called and never moves."""
        follow = [p for p in self._pairs or () if p.follows]
        alone = all(p.leader is not pair.leader for p in follow) and id(pair.shell) in self.used
        return follow[0] if follow and alone and pair.copied and pair.stood >= LOOKED_AT else None

    def _fact(self, pair: _Pair, reached: Set[int] | None) -> LoopAverage:
        if not pair.follows and (beside := self._left(pair)) is not None:
            return LoopAverage(
                pair.name, pair.leader_name, site=self.used[id(pair.shell)], beside=(beside.name, beside.leader_name), stood=pair.stood
            )
        mine, other = dict(pair.follower.named_buffers()), dict(pair.leader.named_buffers())
        floating = [n for n, (b, _) in pair.buffers.items() if b.is_floating_point() and n in mine and n in other]
        stale = tuple(n for n in floating if not _moved(pair.buffers[n][0], mine[n]) and _moved(pair.buffers[n][1], other[n]))
        graded = sum(p.grad is not None if reached is None else id(p) in reached for p in pair.follower.parameters())
        return LoopAverage(
            pair.name,
            pair.leader_name,
            stale,
            id(pair.shell) in self.called or (not self.sees_calls and not pair.shell.training),
            graded,
            self.called.get(id(pair.shell)) or pair.moved_at or self.site(pair.shell),
            id(pair.shell) in self.used or not self.sees_calls,
            self.taken,
        )


def _moved(before: torch.Tensor, now: torch.Tensor) -> bool:
    return before.shape != now.shape or bool((now - before).abs().max() > MOVED * before.abs().max().clamp_min(1.0))


def _roots(modules: Iterable[nn.Module]) -> list[nn.Module]:
    """Modules with weights that no other one holds, wrappers left out."""
    living = [m for m in modules if not is_wrapper(m)]
    held = {id(child) for m in living for child in m._modules.values()}
    return [m for m in living if id(m) not in held and any(True for _ in m.parameters())]


def _inside(module: nn.Module) -> nn.Module:
    """The only child of a module without weights of its own, as an AveragedModel is; else the module."""
    children = [c for c in module._modules.values() if c is not None]
    return children[0] if len(children) == 1 and not any(p is not None for p in module._parameters.values()) else module


def _signature(module: nn.Module) -> Any:
    return type(module), tuple((name, () if is_lazy(p) else tuple(p.shape)) for name, p in module.named_parameters())
