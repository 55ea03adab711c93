"""Where a model starts: the scale of its last layer, and the bias of its output."""

import math
from collections.abc import Sequence

import torch
from torch import nn

from gradcheck.analysis.layer_groups import bias, in_order, parameters_by_name
from gradcheck.analysis.wording import number
from gradcheck.remedies.definition import initial
from gradcheck.remedies.initialization.weights import weights_of
from gradcheck.remedies.layer_selection import is_tuned
from gradcheck.remedies.modules.surgery import module_at
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.layers import Layer
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

SMALLEST_FACTOR = 1e-3
CLASS_LOSSES = ("cross_entropy", "nll_loss")


def heads(m: Measurement) -> list[Layer]:
    """Last linear or convolution layers that are modules."""
    return [x for x in in_order(m) if x.head and x.kind in ("linear", "conv") and ":" not in x.name]


# ---------------------------------------------------------------------------- head scaling


@initial("head-scaling", "smaller initial weights of the last layer", "Karpathy 2019, A Recipe for Training Neural Networks")
def head_scaling(finding: Finding | None, m: Measurement) -> list[Fix]:
    """So that logits start with a standard deviation of 1, values with that of the targets. Large outputs only."""
    wanted = wanted_std(m)
    if is_tuned(m) or wanted is None:
        return []
    made = []
    for head in heads(m):
        now = _std_without_bias(m, head)
        if now is None or (finding is not None and finding.layers and head.name not in finding.layers):
            continue
        factor = min(1.0, wanted / now)
        if factor < SMALLEST_FACTOR or (factor == 1.0 and not _large_bias(m, head, wanted)):
            continue  # not the head is at fault, or not it alone
        text = f"multiply the initial weights of {head.name} by {number(factor)}, so that its output starts with standard deviation "
        text += f"{number(min(wanted, now))} instead of {number(now)}; zero bias"
        made.append(head_scaling.fix(text, finding, layers=(head.name,), settings={"factor": factor, "zero_bias": True}))
    return made[:1]


@head_scaling.applies
def scale_head(treated: TreatedWorkload, fix: Fix) -> None:
    """Multiplies the weights and zeroes the bias."""
    factor = float(fix.settings["factor"])
    with torch.no_grad():
        for weight in list(weights_of(treated, fix)):
            weight.parameter.mul_(factor)
            if weight.bias is not None and fix.settings.get("zero_bias", True):
                weight.bias.zero_()


def _large_bias(m: Measurement, head: Layer, wanted: float) -> bool:
    own = bias(head, parameters_by_name(m))
    return own is not None and math.hypot(own.mean, own.std) > wanted


def wanted_std(m: Measurement) -> float | None:
    """1 for logits, the spread of the targets for values; None where neither is known."""
    call = m.losses[0] if m.losses else None
    if call is not None and call.target_kind == "values":
        return call.target_std or None
    return 1.0


def _std_without_bias(m: Measurement, head: Layer) -> float | None:
    start = head.at(0)
    if start is None or start.output is None or not start.output.finite:
        return None
    known = bias(head, parameters_by_name(m))
    spread = known.std**2 if known is not None else 0.0
    rest = start.output.std**2 - spread
    return math.sqrt(rest) if rest > 0.01 * start.output.std**2 else 0.1 * start.output.std or None


# ------------------------------------------------------------------------------ prior bias


@initial("prior-bias", "output bias at the best constant prediction", "Lin et al. 2017, Focal Loss for Dense Object Detection, section 3.3")
def prior_bias(finding: Finding | None, m: Measurement) -> list[Fix]:
    """The constant prediction that is best: log frequencies of classes, log odds, or the mean of the targets."""
    call = next((c for c in m.losses if c.value is not None), None)
    head = next((x for x in reversed(heads(m)) if bias(x, parameters_by_name(m)) is not None), None)
    if is_tuned(m) or not m.data.given or call is None or head is None:
        return []
    found = best_constant(m, call)
    if found is None or len(found) not in (1, head.output_shape[1 if head.kind == "conv" else -1]):
        return []
    values = ",".join(f"{v:.4g}" for v in found)
    shown = values.replace(",", ", ") if len(found) <= 6 else f"{len(found)} values"
    text = f"start the bias of {head.name} at {what(call)}: {shown}"
    return [prior_bias.fix(text, finding, layers=(head.name,), settings={"bias": values})]


@prior_bias.applies
def set_prior(treated: TreatedWorkload, fix: Fix) -> None:
    """Sets the output's bias; one number is for all units."""
    values = torch.tensor([float(v) for v in str(fix.settings["bias"]).split(",")], device="cpu")
    for name in fix.layers:
        own = getattr(module_at(treated, name), "bias", None)
        if not isinstance(own, nn.Parameter):
            raise Inapplicable(f"{name} has no bias")
        if values.numel() not in (1, own.numel()):
            raise Inapplicable(f"{name} has {own.numel()} units, not {values.numel()}")
        with torch.no_grad():
            own.copy_(values.to(own.device, own.dtype).expand(own.shape))


def best_constant(m: Measurement, call: LossCall) -> Sequence[float] | None:
    labels = m.data.labels
    if call.function in CLASS_LOSSES and call.target_kind == "classes" and labels is not None and labels.counts:
        total = sum(labels.counts) + len(labels.counts)
        return [math.log((n + 1) / total) for n in labels.counts]
    mean = call.target_mean
    if call.function.startswith("binary_cross_entropy"):
        return [math.log(mean / (1 - mean))] if mean is not None and 0 < mean < 1 else None
    return [mean] if call.target_kind == "values" and mean is not None else None


def what(call: LossCall) -> str:
    if call.function in CLASS_LOSSES:
        return "the logarithms of the classes' frequencies"
    return "the log odds of the positive share" if call.function.startswith("binary") else "the mean of the targets"


REMEDIES = (head_scaling, prior_bias)
