"""Remedies that several rules propose, with this model's numbers in them."""

from collections.abc import Sequence
from statistics import median

from gradcheck.analysis.activations import SCALING, SIGMOID_LIKE, gain_for
from gradcheck.analysis.layer_groups import body, gain, parameters_by_name, usual_activation, usual_normalization
from gradcheck.analysis.wording import number
from gradcheck.types.finding import Remedy
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement


def median_gain(m: Measurement, layers: Sequence[Layer]) -> float | None:
    parameters = parameters_by_name(m)
    gains = [g for g in (gain(x, parameters) for x in layers) if g is not None]
    return median(gains) if gains else None


def reinitialise(m: Measurement, layers: Sequence[Layer]) -> tuple[Remedy, ...]:
    """How to initialise these layers for the activation that follows them. Nothing for a model that was trained before."""
    if m.pretrained or not layers:
        return ()
    activation, now = usual_activation(layers), median_gain(m, layers)
    if activation in SIGMOID_LIKE:
        return ()  # no initialisation carries a signal through a stack of sigmoids
    today = f" (now {number(now)})" if now is not None else ""
    if activation in SCALING:
        text = f"initialise the weights with kaiming_normal_(nonlinearity='{activation}'): gain 1.41{today}, zero biases"
        return (Remedy("he-init", text, "safe"),)
    if activation == "selu":
        return (
            Remedy("lecun-init", f"initialise the weights with standard deviation 1 / sqrt(fan_in): gain 1{today}, zero biases", "safe"),
        )
    wanted = number(gain_for(activation, len(body(m))))
    return (Remedy("orthogonal-init", f"initialise the weights with orthogonal_(gain={wanted}){today}, zero biases", "safe"),)


def rescale(m: Measurement) -> tuple[Remedy, ...]:
    """Data-driven scaling of the existing weights."""
    if m.pretrained:
        return ()
    text = "divide each layer's weights, in forward order, by the standard deviation of its output until that is 1 (LSUV)"
    return (Remedy("lsuv-init", text, "safe"),)


def normalise(m: Measurement, layers: Sequence[Layer]) -> tuple[Remedy, ...]:
    """Normalization after layers that have none. Transformers have theirs where they belong."""
    bare = [x for x in layers if not x.normalized]
    if not bare or (m.norms and m.of_kind("attention")):
        return ()
    kind = usual_normalization(m, bare)
    return (
        Remedy("insert-normalization", f"normalise the output of the {len(bare)} layers that have no normalization, with {kind}", "unsafe"),
    )


def bypass(layers: Sequence[Layer]) -> tuple[Remedy, ...]:
    """Residual connections for a plain stack; a smaller scale for branches that exist."""
    branches = sum(x.residual for x in layers)
    if branches:
        text = f"multiply the last weights of each of the {branches} residual branches by {number(branches**-0.5)} = 1 / sqrt({branches})"
        return (Remedy("residual-scaling", text, "safe"),)
    return (Remedy("add-residual", "add the block's input to its output, the branch scaled by 1 / sqrt(number of blocks)", "unsafe"),)


def other_activation(now: str) -> Remedy:
    text = f"replace {now} by tanh with orthogonal_(gain=1.05), or by ReLU with kaiming_normal_"
    return Remedy("replace-activation", text, "unsafe")
