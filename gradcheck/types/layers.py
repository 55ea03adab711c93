"""What was measured of layers: statistics of their outputs and gradients at the measured steps."""

from dataclasses import dataclass
from typing import Literal

from gradcheck.types.location import Location

LayerKind = Literal[
    "linear",  # Linear, Bilinear, F.linear, matrix product with a parameter
    "conv",  # convolutions, transposed ones too
    "recurrent",  # RNN, GRU, LSTM and their cells
    "embedding",
    "norm",
    "activation",
    "attention",  # scaled dot-product attention
    "softmax",
    "dropout",
    "container",  # a module that calls other modules
    "other",
]


@dataclass(frozen=True)
class TensorStats:
    """One tensor in one pass. `nan` and `inf` are counts; the other numbers are over finite entries when any is not."""

    count: int
    nan: int = 0
    inf: int = 0
    mean: float = 0.0
    std: float = 0.0
    norm: float = 0.0  # 2-norm of the whole tensor, accumulated in float64
    min: float = 0.0
    max: float = 0.0
    zeros: float = 0.0  # fraction of entries that are exactly 0
    # Histogram of floor(log2|x|) over a sample of the non-zero entries: counts[i] entries have exponent low + i.
    exponent_low: int = 0
    exponent_counts: tuple[int, ...] = ()

    @property
    def rms(self) -> float:
        return self.norm / self.count**0.5 if self.count else 0.0

    @property
    def finite(self) -> bool:
        return self.nan == 0 and self.inf == 0


@dataclass(frozen=True)
class Snapshot:
    """A layer at one measured step. Counters cover every call of the layer in that step."""

    step: int
    output: TensorStats | None = None
    gradient: TensorStats | None = None  # dL/d(output)
    # Activations only: fraction of entries where the function is flat; see measure/units.py for each function's limit.
    saturated: float | None = None
    # Features that reach the layer, over samples: mean pairwise cosine (1: all samples at one point). Heads and norms only.
    sample_cosine: float | None = None
    # The same over the tokens of each sample, for inputs of shape [samples, tokens, features].
    token_cosine: float | None = None


@dataclass(frozen=True)
class Profile:
    """Cost of one layer in one training step. Containers include their children."""

    parameters: int = 0  # numbers, not bytes
    flops: int | None = None  # forward, multiply and add counted as two
    activation_bytes: int = 0
    forward_ms: float = 0.0
    backward_ms: float | None = None


@dataclass(frozen=True)
class Dormancy:
    """Units (channels) of an activation whose mean magnitude is a small part of the mean over its layer, over the last measured steps."""

    units: int
    dormant: int
    at_start: int  # the same count before the first optimizer step, and in the one after it
    samples: int  # samples x positions
    batches: int  # different ones


@dataclass(frozen=True)
class Layer:
    """A module, or a functional call inside one, that ran in the forward pass. Merged over its calls."""

    name: str  # "encoder.layers.0.linear1"; a functional call is "encoder.layers.0:relu"; the root module is ""
    type: str  # class name of the module, or name of the function: "Linear", "relu"
    kind: LayerKind
    order: int  # position of its first call in the forward pass
    calls: int  # per step
    output_shape: tuple[int, ...]  # of the first call
    site: Location | None = None  # where it is created (modules) or called (functions)
    parameters: tuple[str, ...] = ()  # names of parameters that it holds itself, not its children's
    function: str | None = None  # activations: canonical name: "relu", "gelu", "sigmoid", "tanh", ...
    # What becomes of its output, read from the autograd graph:
    activation: str | None = None  # the activation or softmax that follows before the next linear or conv layer
    normalized: bool = False  # a normalization follows before the next activation, linear or conv layer
    residual: bool = False  # its output is added to a branch that bypasses it
    gate: bool = False  # its output multiplies another activation
    head: bool = False  # no linear, conv or recurrent layer comes after it on the way to the loss
    trained: bool = True  # it lies on a path that carries gradient
    fan_in: int | None = None  # inputs per output unit, for linear and conv layers
    groups: int = 1
    # Units (channels) of an activation that were never positive in any measured batch; None where that says nothing.
    units: int | None = None
    dead_units: int | None = None
    effective_samples: int = 0  # samples x positions that `dead_units` was looked at over
    dead_batches: int = 0  # different batches that it was looked at over
    dead_at_start: int | None = None  # the same count before the first optimizer step
    dormancy: Dormancy | None = None  # activations only
    snapshots: tuple[Snapshot, ...] = ()
    profile: Profile | None = None
    dtype: str = ""  # of its output: "float32", "float16", ...
    depth: int | None = None  # layers with weights on the longest way from the input up to it
    nets: tuple[int, ...] = ()  # of several nets side by side, such as actor and critic, those that it is part of

    def at(self, step: int) -> Snapshot | None:
        """The snapshot of the given step; negative numbers count from the last one, as in a list."""
        if step < 0:
            return self.snapshots[step] if len(self.snapshots) >= -step else None
        return next((s for s in self.snapshots if s.step == step), None)
