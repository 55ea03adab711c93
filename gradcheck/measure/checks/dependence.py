"""What the output for a sample depends on: its own input, and nothing else. Measured on the trained copy in evaluation mode."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import torch

from gradcheck.measure.checks import sample_axis, sample_places
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.measure.checks.sample_axis import (
    FEWEST,
    MOST,
    ROUNDING,
    Inputs,
    OutputChange,
    as_rows,
    change,
    count_for,
    inputs_of,
    shuffled,
    swaps,
)
from gradcheck.types.checks import Dependence
from gradcheck.types.location import Location
from gradcheck.workload.rng import Dice
from gradcheck.workload.step import first_tensor
from gradcheck.workload.tensors import batch_size, tensors_in
from gradcheck.workload.training_copy import TrainingCopy, restored, set_mode

MIXED = 1e-4  # share of the own change below which nothing is looked for
SMALL_EFFECT = 0.01  # of the output; below this, the loss is asked as well
ORDERS = 8  # orders of the inputs that the loss is measured with
BATCHES = 2
FEWEST_POSITIONS = 4  # of a sequence whose order is changed
NOT_THE_SAME = 0.05  # of the change in other samples: by how much equivariance to their order may be missed


def dependence(context: CheckContext) -> Dependence:
    """Raises Unmeasured when samples cannot be told apart in what goes into the model or comes out of it."""
    copy = context.sound()
    with evaluating(copy):
        return _Case(copy, context).result()


@contextmanager
def evaluating(copy: TrainingCopy) -> Iterator[None]:
    """Dropout off and statistics frozen; no fused kernels, which drop padding; everything as before on the way out."""
    fast = torch.backends.mha.get_fastpath_enabled()
    with restored(copy):
        set_mode(copy.model, False)
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            yield
        finally:
            torch.backends.mha.set_fastpath_enabled(fast)


class _Case:
    def __init__(self, copy: TrainingCopy, context: CheckContext) -> None:
        self.copy, self.model, self.context, self.dice = copy, copy.model, context, Dice(context.seed)
        found = inputs_of(copy, (context.compared or context.workload).batches[0], collated=context.workload.collated)
        if found is None:
            raise Unmeasured("the training step does not call the model as a whole with tensors")
        if found.rows < FEWEST:
            raise Unmeasured(f"a batch of {found.rows} has too few samples to compare")
        self.all = found

    def result(self) -> Dependence:
        count = count_for(self.all)
        try:
            return self._with(count)
        except Unmeasured:
            raise
        except Exception as error:  # a batch size hard-coded in the model, say
            whole = all(axis is not None or not isinstance(x, torch.Tensor) for x, axis in zip(self.all.leaves, self.all.axes, strict=True))
            if count == self.all.rows or self.all.rows > MOST or not whole:
                raise Unmeasured("the model does not run on a part of the batch") from error
            return self._with(self.all.rows)

    def _with(self, count: int) -> Dependence:
        replaced, by = swaps(self.all.rows, count)
        index = list(range(count))
        before = self.all.taken(index)
        after = self.all.taken([by[replaced.index(i)] if i in replaced else i for i in index])
        if not after.differ(before):
            raise Unmeasured("all samples of the first batch are alike")
        output = self._output(before, count)
        seen = change(output, self._output(after, count), count, replaced)
        if seen is None:
            raise Unmeasured("the model's output has no entry for each sample")
        effect = _effect(seen)
        found = Dependence(mixed=seen.mixed, input_effect=effect, certain=self.all.known and self.context.workload.data_given)
        if seen.mixed > MIXED:
            found = self._located(found, output, before, after, count, replaced, seen)
        elif count < self.all.rows:  # else the model may hold something for each sample of this one batch
            found = self._placed(found, output, before, count)
        if not found.placed:
            found = self._unordered(found, output, before, count)
        if not found.placed and not found.unordered:
            found = self._lost(found, before, after)
        if not found.layer and (culprit := sample_places.dropped(self.model, before, self.dice)) is not None:
            found = replace(found, dropped=True, layer=culprit.layer, operation=culprit.operation, site=culprit.site)
        if effect is None or effect >= SMALL_EFFECT:
            return replace(found, unpaired=effect is not None and self.all.target and self._unpaired())
        effect = max(effect, self._effect_in_training(before, after, count, replaced))
        found = replace(found, input_effect=effect)
        return self._asked(found) if effect < SMALL_EFFECT and self.all.target else found

    def _effect_in_training(self, before: Inputs, after: Inputs, count: int, replaced: tuple[int, ...]) -> float:
        """The effect of the input in training mode: running statistics that have not settled may drown it in evaluation. 0 if unknown."""
        set_mode(self.model, True)
        try:
            seen = change(self._output(before, count), self._output(after, count), count, replaced)
        except Exception:  # a module that trains only on whole batches
            seen = None
        finally:
            set_mode(self.model, False)
        return (_effect(seen) or 0.0) if seen is not None else 0.0

    def _output(self, inputs: Inputs, count: int) -> torch.Tensor:
        """The first tensor of the output, the prediction by name before others, that has an entry for each sample."""
        self.dice.throw()
        with torch.no_grad():
            output = inputs.run(self.model)
        found = (t for t in (first_tensor(output), *tensors_in(output)) if t.is_floating_point() or t.is_complex())
        rowed = next((t for t in found if as_rows(t, count, range(count))), None)
        if rowed is None:
            raise Unmeasured("the model's output has no entry for each sample")
        return rowed

    def _placed(self, found: Dependence, output: torch.Tensor, before: Inputs, count: int) -> Dependence:
        try:
            culprit = sample_places.placed(self.model, before, count, self.dice)
        except Exception:  # a pass with gradient that the model cannot take
            culprit = None
        if culprit is None:
            return found
        site = self._place(culprit.layer, culprit.site)
        certain = found.certain and not (self.all.per_position and self._independent_along(before, output))
        return replace(found, placed=True, certain=certain, layer=culprit.layer, site=site, operation=culprit.operation)

    def _unordered(self, found: Dependence, output: torch.Tensor, before: Inputs, count: int) -> Dependence:
        """Whether the order of a sequence makes no difference to the output, although something of the positions is added."""
        sequence = before.leaves[before.first]
        axis = before.axes[before.first]
        if not isinstance(sequence, torch.Tensor) or axis != 0 or sequence.dim() != (3 if sequence.is_floating_point() else 2):
            return found
        length = sequence.shape[1]
        culprit = sample_places.one_for_all(self.model, before, length, self.dice) if length >= FEWEST_POSITIONS else None
        if culprit is None:
            return found
        order = _mixed_up(length)
        leaves = [x[:, order] if i == before.first else x for i, x in enumerate(before.leaves)]
        other = self._output(replace(before, leaves=tuple(leaves)), count)
        kept = output[:, order] if output.dim() > 2 and output.shape[1] == length else output
        blind = bool((other - kept).abs().max() <= MIXED * output.abs().max())
        return replace(found, unordered=True, layer=culprit.layer, operation=culprit.operation, site=culprit.site) if blind else found

    def _lost(self, found: Dependence, before: Inputs, after: Inputs) -> Dependence:
        """Whether parameters work on one of several inputs, and neither an output nor the loss depends on it."""
        pairs = list(enumerate(zip(before.leaves, after.leaves, strict=True)))
        varying = [i for i, (a, b) in pairs if isinstance(a, torch.Tensor) and not torch.equal(a, b)]
        for i in varying if len(varying) > 1 else ():
            one = replace(before, leaves=tuple(b if k == i else a for k, (a, b) in pairs))
            try:
                if not self._equal_outputs(before, one) or not self._equal_losses(i):
                    continue
                culprit = sample_places.lost(self.model, before, one, self.dice)
            except Exception:  # inputs that do not fit each other any more
                continue
            if culprit is not None:
                return replace(found, lost=True, layer=culprit.layer, operation=culprit.operation, site=culprit.site)
        return found

    def _equal_outputs(self, one: Inputs, other: Inputs) -> bool:
        outputs = []
        for inputs in (one, other):
            self.dice.throw()
            with torch.no_grad():
                outputs.append(list(tensors_in(inputs.run(self.model))))
        first, second = outputs
        return len(first) == len(second) and all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(first, second, strict=True))

    def _equal_losses(self, leaf: int) -> bool:
        """Of the first batch, and where every sample has the first one's value of this input."""
        batch = (self.context.compared or self.context.workload).batches[0]
        true = self._loss(batch)
        with shuffled(self.model, [0] * self.all.rows, self.all.rows, leaf):
            return self._loss(batch) == true

    # -------------------------------------------------------------------- who mixes

    def _located(
        self,
        found: Dependence,
        output: torch.Tensor,
        before: Inputs,
        after: Inputs,
        count: int,
        replaced: tuple[int, ...],
        seen: OutputChange,
    ) -> Dependence:
        if not torch.equal(self._output(before, count), output):
            raise Unmeasured("the model gave different outputs for the same samples and the same random numbers")
        certain = found.certain and not (self.all.per_position and self._independent_along(before, output))
        ordered = self._ordered(before, output, count, seen)
        if sum(size == count for size in output.shape) > 1:
            return replace(found, certain=certain, ordered=ordered, meant="relation")
        try:
            culprit = sample_axis.culprit(self.model, before, after, count, replaced, self.dice)
        except Exception:  # a pass with gradient that the model cannot take
            culprit = None
        if culprit is None:
            return replace(found, certain=certain, ordered=ordered)
        meant = culprit.meant
        if meant is None and not ordered and sample_axis.relates(culprit, count):
            meant = "relation"
        return replace(
            found,
            misplaced=meant == "routing" and self._misplaced(before, output, count),
            certain=certain,
            ordered=ordered,
            layer=culprit.layer,
            site=self._place(culprit.layer, culprit.site),
            operation=culprit.operation,
            meant=meant,
        )

    def _place(self, layer: str, site: Location | None) -> Location | None:
        """Where a module of torch is created; in the user's code, where the operation is called."""
        module = dict(self.model.named_modules()).get(layer)
        ours = module is not None and type(module).__module__.startswith("torch.")
        return (self.context.sites.get(layer) or site) if ours else site

    def _ordered(self, before: Inputs, output: torch.Tensor, count: int, seen: OutputChange) -> bool:
        """Whether the samples' order matters: outputs of reordered samples are not the reordered outputs."""
        order = _mixed_up(count)
        other = self._output(before.taken(order), count)
        if other.shape != output.shape:
            return False
        kept = list(range(count))
        limit = NOT_THE_SAME * seen.others
        misses = [float((b - a[order]).square().mean(1).sqrt().max()) for a, b in zip(_rows(output, kept), _rows(other, kept), strict=True)]
        return min(misses, default=0.0) > limit

    def _misplaced(self, before: Inputs, output: torch.Tensor, count: int) -> bool:
        """Whether what a sample gets in a batch of its copies stands in another's row, and no index among the outputs tells where."""
        rows = as_rows(output, count, ())
        if len(rows) != 1:
            return False
        others = 0
        for i in range(count):
            self.dice.throw()
            with torch.no_grad():
                results = list(tensors_in(before.taken([i] * count).run(self.model)))
            alone = next((t for t in results if t.shape == output.shape), None)
            if alone is None or any(not t.is_floating_point() and count in t.shape for t in results):
                return False
            (own,) = as_rows(alone, count, ())
            far = (rows[0] - own[:1]).abs().amax(1) > MIXED * rows[0].abs().max()
            if bool(far.all()):
                return False
            others += bool(far[i])
        return others > 0

    def _independent_along(self, before: Inputs, output: torch.Tensor) -> bool:
        """Whether the entries of the second axis are independent of each other, as samples are in a model that takes time first."""
        other = before.along(1)
        if other is None:
            return False
        replaced, by = swaps(other.rows, other.rows)
        try:
            seen = change(
                output.movedim(1, 0) if self._has(output, other.rows) else output, self._moved(other, replaced, by), other.rows, replaced
            )
        except Exception:
            return False
        return seen is not None and seen.own > 0 and seen.mixed <= MIXED

    def _moved(self, other: Inputs, replaced: tuple[int, ...], by: tuple[int, ...]) -> torch.Tensor:
        output = self._output(other.moved(replaced, by), other.rows)
        return output.movedim(1, 0) if self._has(output, other.rows) else output

    @staticmethod
    def _has(output: torch.Tensor, rows: int) -> bool:
        return output.dim() >= 2 and output.shape[1] == rows

    # --------------------------------------------------------------- what the loss says

    def _asked(self, found: Dependence) -> Dependence:
        """The loss with the inputs of each batch as they are, and shuffled against their targets."""
        batches = self.context.workload.batches
        batches = [b for b in batches if batch_size(b) == batch_size(batches[0])][:BATCHES]
        try:
            true = fmean(self._loss(b) for b in batches)
            others = []
            for k in range(ORDERS):
                generator = torch.Generator().manual_seed(self.context.seed + k)
                order = torch.randperm(self.all.rows, generator=generator, device="cpu").tolist()
                with shuffled(self.model, order, self.all.rows):
                    others.append(fmean(self._loss(b) for b in batches))
        except Exception:  # a last batch that is smaller, or a loss that does not exist in evaluation mode
            return found
        return replace(found, trained_loss=true, shuffled_loss=fmean(others), standard_error=stdev(others))

    def _unpaired(self) -> bool:
        batch = (self.context.compared or self.context.workload).batches[0]
        try:
            true = self._loss(batch)
            with shuffled(self.model, _mixed_up(self.all.rows), self.all.rows):
                return math.isclose(self._loss(batch), true, rel_tol=ROUNDING)
        except Exception:  # a loss that does not exist in evaluation mode
            return False

    def _loss(self, batch: Any) -> float:
        self.dice.throw()
        with torch.no_grad():
            return float(self.copy.loss(batch))


def _effect(seen: OutputChange) -> float | None:
    return max(seen.own, seen.others) / seen.size if seen.size > 0 and math.isfinite(seen.size) else None


def _mixed_up(count: int) -> list[int]:
    """An order in which no sample stays in its place and few keep their neighbours."""
    order = torch.randperm(count, generator=torch.Generator().manual_seed(1), device="cpu").tolist()
    turns = [order[k:] + order[:k] for k in range(count)]
    return next((o for o in turns if all(i != x for i, x in enumerate(o))), order)


def _rows(output: torch.Tensor, kept: list[int]) -> list[torch.Tensor]:
    return as_rows(output, len(kept), kept)
