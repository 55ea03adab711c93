"""Evaluation mode in a training pass: what is switched off in the modules that run."""

from typing import Any, NamedTuple

from torch import nn


class Off(NamedTuple):
    """A module that ran with gradient, and what in it was not in training mode."""

    module: nn.Module
    ids: frozenset[int]  # of its parameters
    dropouts: tuple[str, ...]
    norms: tuple[str, ...]
    fresh: bool  # running statistics that had seen no batch


class Modes:
    def __init__(self) -> None:
        self.off: dict[int, Off] = {}
        self._known: dict[int, tuple[list[Any], list[Any]]] = {}

    def take(self, ids: frozenset[int]) -> list[Off]:
        """Takes out what was noted of modules that hold parameters with these ids."""
        mine = [m for m in self.off.values() if m.ids & ids]
        self.off = {k: m for k, m in self.off.items() if not m.ids & ids}
        return mine

    def look(self, module: nn.Module) -> None:
        """Which dropouts are off in the running module, and which trained normalizations do not follow their batches."""
        if id(module) not in self._known:
            self._known[id(module)] = _dropouts(module), _norms(module)
        dropouts, norms = self._known[id(module)]
        off = tuple(name for name, m in dropouts if not m.training)
        frozen = [(name, m) for name, m in norms if not m.training and (m.weight is None or m.weight.requires_grad)]
        fresh = any(m.num_batches_tracked is not None and not m.num_batches_tracked.item() for _, m in frozen)
        ids = frozenset(id(p) for p in module.parameters())
        self.off[id(module)] = Off(module, ids, off, tuple(n for n, _ in frozen), fresh)


def _dropouts(module: nn.Module) -> list[tuple[str, nn.Module]]:
    found = []
    for name, m in module.named_modules():
        rate = getattr(m, "p", 0.0) if isinstance(m, nn.modules.dropout._DropoutNd) else getattr(m, "dropout", 0.0)
        recurrent = isinstance(m, (nn.RNNBase, nn.MultiheadAttention))
        if isinstance(rate, (int, float)) and rate > 0 and (isinstance(m, nn.modules.dropout._DropoutNd) or recurrent):
            found.append((name, m))
    return found


def _norms(module: nn.Module) -> list[tuple[str, Any]]:
    kinds = nn.modules.batchnorm._BatchNorm
    return [(name, m) for name, m in module.named_modules() if isinstance(m, kinds) and m.running_mean is not None]
