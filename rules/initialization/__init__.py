"""Rules about where weights start.

`RULES`: the files, each with the rule of its name, in the order of their codes. What follows is what several of them share.
"""

from gradcheck.analysis.layer_groups import body, holders, is_matrix
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter

RULES = (
    "signal_gain weight_scale residual_growth recurrent_initialization degenerate_initialization symmetric_units "
    "default_initialization output_bias_off_prior"
).split()

TRAINED_BEFORE = "the model was trained before: its weights were learned"
NO_GAINS = "no linear or conv layer of the body has weights whose scale can be judged"


def hidden_weights(m: Measurement, trained_for: int) -> list[tuple[Parameter, Layer]]:
    """Weights of the body that the optimizer holds and that were measured at the start and at a step >= `trained_for`."""
    inside, holder = {x.name for x in body(m)}, holders(m)
    return [
        (p, x) for p in m.parameters
        if (x := holder.get(p.name)) is not None and x.name in inside
        and p.trainable and p.used and p.groups > 0 and is_matrix(p) and p.at(0) is not None and _last_step(p) >= trained_for
    ]  # fmt: skip


def _last_step(p: Parameter) -> int:
    return max((s.step for s in p.steps), default=-1)


def anything_moved(m: Measurement) -> bool:
    """Whether the optimizer changed any parameter at all; if not, weights that stay as they are prove nothing."""
    return any(s.update_ratio for p in m.parameters for s in p.steps)
