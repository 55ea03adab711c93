"""What is known of each activation function, by its canonical name. Rules, measuring and remedies all ask here.

Softmax and exp are in the table too, since they stand where an activation may stand: before a loss, or as a gate.
"""

from dataclasses import dataclass
from math import inf


@dataclass(frozen=True)
class Activation:
    """Traits of a function; see the sets below for what follows from them."""

    module: str | None = None  # its class in torch.nn
    bounds: tuple[float, float] = (-inf, inf)  # of its values
    # Gain that carries a signal through it, as (lowest, highest) of: unit forward variance, preserved gradient, and what is
    # recommended for deep stacks. Computed by quadrature for N(0, 1) inputs. None: not known.
    gains: tuple[float, float] | None = None
    piecewise_linear: bool = False  # its second derivative is zero
    scales: bool = False  # its output scales with its input, at least up to a bound
    zero_half: bool = False  # exactly zero over half of its domain: a unit can die in it
    sigmoid_like: bool = False  # no initial weights carry a signal through a stack of them


ACTIVATIONS = {
    "relu": Activation("ReLU", (0, inf), (1.414, 1.414), piecewise_linear=True, scales=True, zero_half=True),
    "relu6": Activation("ReLU6", (0, 6), (1.414, 1.414), piecewise_linear=True, scales=True, zero_half=True),
    "relu2": Activation(bounds=(0, inf), gains=(0.707, 0.816), zero_half=True),
    "threshold": Activation("Threshold", piecewise_linear=True, zero_half=True),
    "leaky_relu": Activation("LeakyReLU", gains=(1.387, 1.414), piecewise_linear=True, scales=True),
    "prelu": Activation("PReLU", gains=(1.387, 1.414), piecewise_linear=True, scales=True),
    "rrelu": Activation("RReLU", piecewise_linear=True),
    "gelu": Activation("GELU", gains=(1.481, 1.534)),
    "silu": Activation("SiLU", gains=(1.623, 1.677)),
    "mish": Activation("Mish", gains=(1.445, 1.487)),
    "hardswish": Activation("Hardswish", gains=(1.67, 1.737)),
    "elu": Activation("ELU", gains=(1.0, 1.25)),
    "selu": Activation("SELU", gains=(0.75, 1.0)),
    "softplus": Activation("Softplus", (0, inf), (1.042, 1.846), sigmoid_like=True),
    "tanh": Activation("Tanh", (-1, 1), (1.05, 1.667)),
    "hardtanh": Activation("Hardtanh", (-1, 1), (1.05, 1.667), piecewise_linear=True),
    "softsign": Activation("Softsign", (-1, 1)),
    "sigmoid": Activation("Sigmoid", (0, 1), (1.846, 4.723), sigmoid_like=True),
    "hardsigmoid": Activation("Hardsigmoid", (0, 1), (1.846, 4.723), sigmoid_like=True),
    "logsigmoid": Activation("LogSigmoid", (-inf, 0), sigmoid_like=True),
    "softmax": Activation("Softmax", (0, 1)),
    "log_softmax": Activation("LogSoftmax", (-inf, 0)),
    "exp": Activation(bounds=(0, inf)),
    "identity": Activation("Identity"),
}
UNKNOWN = Activation()

BOUNDS = {name: a.bounds for name, a in ACTIVATIONS.items() if a.bounds != UNKNOWN.bounds}
SCALING = frozenset(name for name, a in ACTIVATIONS.items() if a.scales)
DYING = frozenset(name for name, a in ACTIVATIONS.items() if a.zero_half)
PIECEWISE_LINEAR = frozenset(name for name, a in ACTIVATIONS.items() if a.piecewise_linear)
SIGMOID_LIKE = frozenset(name for name, a in ACTIVATIONS.items() if a.sigmoid_like)
UNIT = frozenset(name for name, a in ACTIVATIONS.items() if a.bounds == (0, 1))  # values are shares or probabilities
SYMMETRIC = frozenset(name for name, a in ACTIVATIONS.items() if a.bounds == (-1, 1))
POSITIVE = frozenset(name for name, a in ACTIVATIONS.items() if a.bounds[0] == 0) - UNIT
SATURATING = SYMMETRIC | UNIT - {"softmax"}  # flat at both ends

GAINS = {"linear": (1.0, 1.0)} | {name: a.gains for name, a in ACTIVATIONS.items() if a.gains}
DEEP = 10  # layers: deeper stacks of tanh want the gain that keeps the gradient, 1.05, instead of 5/3


def gain_for(activation: str | None, depth: int) -> float:
    """The gain for weights before an activation in a stack of that many layers; for one that is not known, 1."""
    if activation in ("tanh", "hardtanh"):
        return 1.05 if depth > DEEP else 1.67
    low, high = GAINS.get(activation or "linear", (1.0, 1.0))
    return 2**0.5 if activation in SCALING else (low + high) / 2
