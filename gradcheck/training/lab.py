"""Copies of one workload that differ only by their fixes."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace

from gradcheck.errors import TargetError
from gradcheck.training.splits import Splitter
from gradcheck.types.fix import Fix
from gradcheck.workload.rng import preserve_rng, seed_all
from gradcheck.workload.treated import TreatedWorkload, treated_copy
from gradcheck.workload.workload import Workload

KEPT = 4  # seeds whose untreated copies stay in memory

Apply = Callable[[TreatedWorkload, Fix], None]


class Lab:
    """Makes treated and untreated copies for each seed."""

    def __init__(self, workload: Workload, apply: Apply, splitter: Splitter | None = None) -> None:
        """`apply`: puts a fix into a copy. `splitter`: gives every seed weights of its own, where the target can be rebuilt, and its own
        training and validation data; without it a seed is an order of batches and a draw of dropout."""
        self.workload, self.splitter = workload, splitter
        self._apply = apply
        self._bases: OrderedDict[int, TreatedWorkload] = OrderedDict()

    def base(self, seed: int) -> TreatedWorkload:
        """The untreated copy of a seed. Raises TargetError when the model cannot be copied."""
        if self.splitter is None:
            return treated_copy(self.workload)
        if seed not in self._bases:
            batches, val_batches = self.splitter.split(seed)
            self._bases[seed] = treated_copy(replace(self._built(seed), batches=batches, val_batches=val_batches))
            while len(self._bases) > KEPT:
                self._bases.popitem(last=False)
        return self._bases[seed]

    def _built(self, seed: int) -> Workload:
        if self.workload.rebuild is None or not seed:
            return self.workload
        try:
            return self.workload.rebuild(seed)
        except TargetError:
            return self.workload

    def treated(self, fixes: Sequence[Fix], seed: int = 0) -> TreatedWorkload:
        """A copy with these fixes, which draw by the seed. Raises Inapplicable, or what applying raises."""
        with preserve_rng():
            treated = self.base(seed) if self.splitter is None else self.base(seed).copy()
            for fix in fixes:
                seed_all(seed)
                self._apply(treated, fix)
        return treated
