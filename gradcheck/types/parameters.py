"""What was measured of parameters, and what keeps the gradient from them."""

from dataclasses import dataclass

from gradcheck.types.location import Location


@dataclass(frozen=True)
class ParameterStep:
    """A parameter at one measured step, before (weights, gradient) and through (update) the optimizer's step."""

    step: int
    norm: float  # 2-norm of the parameter
    gradient_norm: float | None  # None: autograd left no gradient
    gradient_max: float | None = None
    gradient_finite: bool = True
    update_ratio: float | None = None  # ||change by the optimizer|| / ||parameter||, on a sample of entries when it is large
    duplicate_units: float | None = None  # fraction of rows whose weights equal another row's (and whose gradients do, if any)
    constant: bool = False  # all entries equal
    # Parameters of half precision: share of the entries with a gradient that the optimizer's step left exactly as they were.
    unchanged: float | None = None
    along: float | None = None  # at step 0: product of parameter and gradient, estimated like update_ratio


@dataclass(frozen=True)
class Parameter:
    """A parameter of the model. Tied ones appear once, under their first name."""

    name: str
    layer: str  # module that holds it
    shape: tuple[int, ...]
    count: int
    dtype: str
    trainable: bool
    groups: int  # number of parameter groups of the optimizer that hold it
    aliases: tuple[str, ...] = ()
    mean: float = 0.0  # at the start, as `std`
    std: float = 0.0
    used: bool = True  # the autograd graph of the loss reaches it (in any batch)
    steps: tuple[ParameterStep, ...] = ()
    lr: float | None = None  # of its parameter group
    weight_decay: float = 0.0  # of its parameter group
    site: Location | None = None  # where the script makes it, of a tensor that no module holds
    exponent_low: int = 0  # at the start, as in TensorStats
    exponent_counts: tuple[int, ...] = ()
    largest: float = 0.0  # entry, without its sign

    def at(self, step: int) -> ParameterStep | None:
        if step < 0:
            return self.steps[step] if len(self.steps) >= -step else None
        return next((s for s in self.steps if s.step == step), None)


@dataclass(frozen=True)
class Cut:
    """A place where the gradient is cut off although parameters lie before it."""

    operation: str  # "detach", "no_grad", "data", "numpy", "item", "argmax", "round", "bool", "int-cast", "unused-output", "not-called"
    layer: str  # first module whose output is cut; "" for the root
    site: Location | None
    parameters: tuple[str, ...]  # trainable parameters that get no gradient because of it
    in_package: bool = False  # the operation is in an installed package's code: by that package's design


@dataclass(frozen=True)
class ZeroDerivative:
    """A place where gradients become zeros: a step function, a product with zeros, or a bound that changes every entry."""

    operation: str  # "sign", "round", "floor", "ceil", "trunc", "relu", "clamp", ..., "product", "zeros"
    layer: str  # module whose code it is in; "" for the root
    site: Location | None
    parameters: tuple[str, ...]  # trainable parameters before it; of "zeros" the two that are multiplied
    factor: str = ""  # of a product: path of the buffer, frozen parameter or plain attribute that is zero: "blocks.0.scale"


@dataclass(frozen=True)
class HiddenTensor:
    """A trainable tensor that the loss depends on and that `model.parameters()` does not list."""

    name: str  # where it was found: "self.blocks[0].weight", or "" when it could not be found
    owner: str  # class name of the hidden module, or "Parameter"
    shape: tuple[int, ...]
    site: Location | None
    in_optimizer: bool
