"""Treatments of the batches: a common scale, samples in random order and without gaps, and the input in place of a tensor like it."""

import ast
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch

from gradcheck.analysis.activations import POSITIVE, SYMMETRIC, UNIT
from gradcheck.remedies.definition import of_data, wiring
from gradcheck.remedies.editing.nodes import argument, calls_in
from gradcheck.remedies.modules.rewriting import Substitute, bind, own_methods
from gradcheck.remedies.modules.surgery import require_running
from gradcheck.types.data import InputFacts
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.workload.device import wide
from gradcheck.workload.tensors import batch_size, tensors_of
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, input_indices, joined, picked, replaced, target_index, tensor_at
from gradcheck.workload.workload import Batch

LIKE = ("zeros_like", "ones_like", "rand_like", "randn_like", "empty_like")


@wiring(
    "use-input",
    "the input in place of a placeholder",
    "Karpathy 2019, A Recipe for Training Neural Networks: input-independent baseline",
    applicability="unsafe",
    checkpoint="keys stay the same, but weights trained on the placeholder have not seen an input",
)
def use_input(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Whether the code has such a place is seen when it is applied."""
    if finding is None or finding.code != "GRAPH008":
        return []
    return [use_input.fix("use the input where a tensor of its shape stands in its place: zeros_like(x) and the like", finding)]


@use_input.applies
def apply_use_input(treated: TreatedWorkload, p: Fix) -> None:
    found = [(method, copies) for method in own_methods(treated) if (copies := placeholders(method.tree))]
    if sum(len(copies) for _, copies in found) != 1:
        what = "several places" if found else "no place"
        raise Inapplicable(f"{what} of the model's code put a tensor like the input in its place")
    method, copies = found[0]
    bind(method, Substitute(copies).visit(method.tree))
    require_running(treated)


def placeholders(tree: ast.FunctionDef) -> dict[ast.Call, ast.Name]:
    """Calls such as torch.zeros_like(x) of an argument x of the method."""
    arguments = {a.arg for a in (*tree.args.args, *tree.args.kwonlyargs)}
    copied = {call: argument(call, "input", 0) for call in calls_in(tree, *LIKE)}
    return {call: x for call, x in copied.items() if isinstance(x, ast.Name) and x.id in arguments}


Axis = Literal["feature", "channel", "all"]
SEED = 0  # of the order that samples are dealt in
REGRESSION_LOSSES = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")


@dataclass(frozen=True)
class Rescale:
    """(x - mean) / std of the tensor at a position in the batch."""

    index: int
    mean: torch.Tensor
    std: torch.Tensor

    def __call__(self, batch: Batch) -> Batch:
        x = tensor_at(batch, self.index)
        return replaced(batch, {self.index: (x - self.mean.to(x)) / self.std.to(x)})


# ----------------------------------------------------------------------------------- inputs


def axis_of(x: InputFacts) -> Axis:
    """What shares a scale: a column of a table, a channel of images and volumes; of sequences, everything."""
    return "feature" if len(x.shape) == 2 else "channel" if len(x.shape) >= 4 else "all"


def _unscaled(x: InputFacts) -> bool:
    """Far enough from zero mean and unit scale that it may matter."""
    return abs(x.mean) > 0.5 or not 0.5 < x.std < 2 or (x.feature_std_ratio or 1.0) > 3


@of_data("standardize-input", "standardized input", "LeCun et al. 1998, Efficient BackProp, section 4.3")
def standardize_input(finding: Finding | None, m: Measurement) -> list[Fix]:
    floating = [x for x in m.data.inputs if x.dtype.startswith(("float", "bfloat")) and len(x.shape) > 1 and x.std > 0]
    chosen = [x for x in floating if _unscaled(x)] or floating
    if not chosen:
        return []
    axis = axis_of(chosen[0])
    chosen = [x for x in chosen if axis_of(x) == axis]
    settings: dict[str, Setting] = {"input": ",".join(x.name for x in chosen), "axis": axis}
    if axis == "all" and len(chosen) == 1:
        settings |= {"mean": chosen[0].mean, "std": chosen[0].std}
        text = f"subtract {chosen[0].mean:.3g} from the input and divide it by {chosen[0].std:.3g}"
    else:
        text = f"subtract each {axis}'s mean from the input and divide by its standard deviation, both over the training data"
    return [standardize_input.fix(text, finding, settings=settings)]


@standardize_input.applies
def apply_standardize_input(treated: TreatedWorkload, p: Fix) -> None:
    """With mean and standard deviation over the training batches. What never varies is only centred."""
    names = [x for x in str(p.settings.get("input", "")).split(",") if x]
    batches = treated.workload.batches
    indices = input_indices(batches[0], treated.model, names)
    if not indices:
        raise Inapplicable("the batches have no floating-point input")
    for index in indices:
        mean, std = moments([tensor_at(b, index) for b in batches], p.settings["axis"])  # type: ignore[arg-type]
        treated.transform(Rescale(index, mean, std))


def moments(tensors: Sequence[torch.Tensor], axis: Axis) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and standard deviation over finite entries, in shapes that broadcast against one tensor; deviations of 0 become 1."""
    if axis != "all" and any(t.shape[1:2] != tensors[0].shape[1:2] for t in tensors):
        raise Inapplicable("batches differ in their number of features")
    if axis == "all":
        columns = torch.cat([wide(t.detach()).reshape(-1, 1) for t in tensors])
    else:
        columns = torch.cat([wide(t.detach()).movedim(1, -1).reshape(-1, t.shape[1]) for t in tensors])
    known = torch.isfinite(columns)
    count = known.sum(0).clamp_min(1)
    mean = torch.where(known, columns, 0).sum(0) / count
    std = (torch.where(known, columns - mean, 0).square().sum(0) / count).sqrt()
    std = torch.where(std > 1e-12 * mean.abs().clamp_min(1e-300), std, 1.0)
    if axis == "all":
        return mean.reshape(()), std.reshape(())
    shape = (1, -1, *(1 for _ in range(tensors[0].dim() - 2)))
    return mean.reshape(shape), std.reshape(shape)


# ---------------------------------------------------------------------------------- targets


@dataclass(frozen=True)
class _Targets:
    mean: float
    std: float
    low: float | None = None
    high: float | None = None
    producer: str | None = None


def _targets(m: Measurement) -> _Targets | None:
    """Of the first regression loss."""
    call: LossCall | None = next((c for c in m.losses if c.function in REGRESSION_LOSSES and c.target_std), None)
    if call is not None and call.target_mean is not None and call.target_std is not None:
        return _Targets(call.target_mean, call.target_std, call.target_min, call.target_max, call.producer)
    by_hand = next((d for d in m.differences if d.target_std > 0), None)
    return _Targets(by_hand.target_mean, by_hand.target_std) if by_hand is not None else None


@of_data("standardize-target", "standardized target", "LeCun et al. 1998, Efficient BackProp, section 4.5")
def standardize_target(finding: Finding | None, m: Measurement) -> list[Fix]:
    """To zero mean and unit scale; into the range of the output's activation where it has one."""
    t = _targets(m)
    if t is None or not (math.isfinite(t.mean) and math.isfinite(t.std)):
        return []
    if t.producer in UNIT | SYMMETRIC and t.low is not None and t.high is not None and t.high > t.low:
        low, width = (t.low, t.high - t.low) if t.producer in UNIT else ((t.low + t.high) / 2, (t.high - t.low) / 2)
        span = "[0, 1]" if t.producer in UNIT else "[-1, 1]"
        text = f"scale the targets into {span}: subtract {low:.6g} and divide by {width:.6g}; undo it where predictions are read"
        return [standardize_target.fix(text, finding, settings={"mean": low, "std": width, "axis": "all"})]
    if t.producer in POSITIVE and t.low is not None:
        text = f"make the targets positive: subtract {t.low:.6g} and divide by {t.std:.6g}; undo it where predictions are read"
        return [standardize_target.fix(text, finding, settings={"mean": t.low, "std": t.std, "axis": "all"})]
    text = f"subtract {t.mean:.6g} from the targets and divide them by {t.std:.6g}; undo it where predictions are read"
    return [standardize_target.fix(text, finding, settings={"mean": t.mean, "std": t.std, "axis": "all"})]


@standardize_target.applies
def apply_standardize_target(treated: TreatedWorkload, p: Fix) -> None:
    batch = treated.workload.batches[0]
    index = target_index(batch, treated.model)
    if index is None:
        index = _by_moments(batch, p)
    if index is None or not tensor_at(batch, index).is_floating_point():
        raise Inapplicable("the batches have no target of floating-point numbers")
    mean, std = (torch.tensor(float(p.settings[k]), dtype=torch.float64, device="cpu") for k in ("mean", "std"))
    treated.transform(Rescale(index, mean, std))


def _by_moments(batch: Batch, p: Fix) -> int | None:
    """Position of the tensor with these moments: the batches of a captured script do not say which of theirs is the target."""
    mean, std = float(p.settings["mean"]), float(p.settings["std"])
    floating = [(i, wide(t)) for i, t in enumerate(tensors_of(batch)) if t.is_floating_point() and t.numel() > 1]
    fits = [i for i, t in floating if abs(t.mean() - mean) + abs(t.std(correction=0) - std) < 1e-3 * std]
    return fits[0] if len(fits) == 1 else None


# ---------------------------------------------------------------------------------- samples


@of_data("shuffle-data", "shuffled samples", "Bottou 2012, Stochastic Gradient Descent Tricks, section 5.1")
def shuffle_data(finding: Finding | None, m: Measurement) -> list[Fix]:
    if m.data.batches < 2 or (finding is None and not (m.data.labels is not None and m.data.labels.sorted)):
        return []
    return [shuffle_data.fix("deal the samples into batches at random: shuffle=True", finding)]


@shuffle_data.applies
def shuffle(treated: TreatedWorkload, _: Fix) -> None:
    """Redeals the samples of all batches, into batches of the same sizes."""
    batches = treated.workload.batches
    sizes = [batch_size(b) for b in batches]
    whole = joined(batches)
    order = torch.randperm(sum(sizes), generator=torch.Generator().manual_seed(SEED), device="cpu")
    treated.workload.batches = [picked(whole, part) for part in order.split(sizes)]


@of_data("clean-data", "samples without NaN or infinity", "Schafer and Graham 2002, Missing Data: Our View of the State of the Art")
def clean_data(finding: Finding | None, m: Measurement) -> list[Fix]:
    bad = sum(x.non_finite for x in m.data.inputs)
    if not bad and finding is None:
        return []
    return [clean_data.fix("leave out the samples with NaN or infinity in them", finding)]


@torch.no_grad()
def complete(batch: Batch) -> Batch:
    """The batch without samples that hold NaN or infinity. A batch of such samples only keeps them, with zeros in these places."""
    size = batch_size(batch)
    fine = torch.ones(size, dtype=torch.bool, device="cpu")
    for t in tensors_of(batch):
        if t.is_floating_point() and t.dim() and t.shape[0] == size:
            fine &= torch.isfinite(t).reshape(size, -1).all(1).cpu()
    if bool(fine.all()):
        return batch
    if not bool(fine.any()):
        filled = {i: torch.nan_to_num(t, 0.0, 0.0, 0.0) for i, t in enumerate(tensors_of(batch)) if t.is_floating_point()}
        return replaced(batch, filled)
    return picked(batch, fine)


@clean_data.applies
def clean(treated: TreatedWorkload, _: Fix) -> None:
    treated.transform(complete)


REMEDIES = (standardize_input, standardize_target, shuffle_data, clean_data, use_input)
