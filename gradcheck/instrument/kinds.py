"""What a module or a torch function is: its kind, and the canonical name of its activation function."""

import re
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from gradcheck.types.layers import LayerKind
from gradcheck.workload.sharding import class_of

# Kinds whose insides are not looked at: their functional calls are implementation.
LEAF_KINDS: frozenset[LayerKind] = frozenset(
    ("linear", "conv", "recurrent", "embedding", "norm", "activation", "attention", "softmax", "dropout")
)
# Kinds that transform the signal by trained weights and make up the depth of a network.
WEIGHTED_KINDS: frozenset[LayerKind] = frozenset(("linear", "conv", "recurrent"))

_ACTIVATION_NAMES = (
    "relu relu6 leaky_relu prelu rrelu elu selu celu gelu silu mish softplus softsign tanh sigmoid logsigmoid hardtanh "
    "hardswish hardsigmoid tanhshrink softshrink hardshrink threshold glu sin"
).split()

# Class names of activation modules outside torch.nn, most specific first.
_ACTIVATION_PATTERNS = [
    (re.compile(pattern, re.IGNORECASE), name)
    for pattern, name in (
        (r"relu_?(2|sq)|squared_?relu", "relu2"),
        (r"relu6", "relu6"),
        (r"leaky_?relu", "leaky_relu"),
        (r"prelu", "prelu"),
        (r"gelu", "gelu"),
        (r"h(ard)?_?swish", "hardswish"),
        (r"h(ard)?_?sigmoid", "hardsigmoid"),
        (r"swish|silu", "silu"),
        (r"mish", "mish"),
        (r"selu", "selu"),
        (r"celu", "celu"),
        (r"^elu", "elu"),
        (r"relu", "relu"),
        (r"logsigmoid", "logsigmoid"),
        (r"sigmoid", "sigmoid"),
        (r"tanh", "tanh"),
        (r"softplus", "softplus"),
        (r"softsign", "softsign"),
        (r"^(snake|sine?)$", "sin"),
    )
]
_NORM_PATTERN = re.compile(r"norm(alization)?(\d?d)?(fp32|act\w*|nchw)?$|(layer|batch|group|rms|instance)_?norm", re.IGNORECASE)


def kind_of(module: nn.Module) -> LayerKind:
    if isinstance(module, (nn.Linear, nn.Bilinear)):
        return "linear"
    if isinstance(module, _ConvNd):
        return "conv"
    if isinstance(module, (nn.RNNBase, nn.RNNCellBase)):
        return "recurrent"
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        return "embedding"
    if isinstance(module, nn.MultiheadAttention):
        return "attention"
    if isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmax2d, nn.Softmin)):
        return "softmax"
    if isinstance(module, _DropoutNd):
        return "dropout"
    name = class_of(module).__name__
    if _NORM_PATTERN.search(name) and not isinstance(module, (nn.Sequential, nn.ModuleList)):
        return "norm"
    if next(module.children(), None) is not None:
        return "container"
    if activation_of(module) is not None:
        return "activation"
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.dim() == 2 and (name == "Conv1D" or "linear" in name.lower()):
        return "linear"
    if re.search(r"drop(out|path|block)|stochasticdepth", name, re.IGNORECASE):
        return "dropout"
    return "other"


def holds_layers(model: nn.Module) -> bool:
    """Whether some of its weights are those of layers, or of something compiled, and not only of modules that are no layers (kernels)."""
    holders = (m for m in model.modules() if next(m.parameters(recurse=False), None) is not None)
    return any(isinstance(m, torch.jit.ScriptModule) or kind_of(m) in LEAF_KINDS for m in holders)


def activation_of(module: nn.Module) -> str | None:
    """Canonical name of an activation module: "relu", "gelu", ...; None for anything else."""
    name = class_of(module).__name__
    if class_of(module).__module__.startswith("torch.nn"):
        snake = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
        for candidate in (snake, name.lower()):
            if candidate in _ACTIVATION_NAMES:
                return candidate
        return None
    if sum(p.numel() for p in module.parameters(recurse=False)) > 4096:
        return None
    return next((canonical for pattern, canonical in _ACTIVATION_PATTERNS if pattern.search(name)), None)


def _every_form(name: str) -> Iterable[Callable[..., Any]]:
    """A function as F.f, F.f_, torch.f, torch.f_, Tensor.f, Tensor.f_, torch.special.f: those that exist."""
    for home in (F, torch, torch.Tensor, torch.special):
        for spelling in (name, name + "_"):
            function = getattr(home, spelling, None)
            if callable(function):
                yield function


def _table() -> dict[Callable[..., Any], tuple[LayerKind, str]]:
    table: dict[Callable[..., Any], tuple[LayerKind, str]] = {}

    def enter(kind: LayerKind, names: str, canonical: str | None = None) -> None:
        for name in names.split():
            for function in _every_form(name):
                table[function] = (kind, canonical or name)

    for name in _ACTIVATION_NAMES:
        enter("activation", name)
    enter("activation", "expit", "sigmoid")
    enter("linear", "linear bilinear matmul mm addmm bmm baddbmm einsum __matmul__ __rmatmul__")
    enter("conv", "conv1d conv2d conv3d conv_transpose1d conv_transpose2d conv_transpose3d")
    enter("norm", "layer_norm group_norm batch_norm instance_norm rms_norm local_response_norm")
    enter("attention", "scaled_dot_product_attention multi_head_attention_forward")
    enter("embedding", "embedding embedding_bag")
    enter("softmax", "softmax log_softmax softmin")
    return table


FUNCTIONS = _table()
CLAMPS = frozenset((torch.clamp, torch.Tensor.clamp, torch.clamp_min, torch.Tensor.clamp_min, torch.clip, torch.Tensor.clip))


def is_relu_clamp(args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
    """clamp(x, min=0) and nothing above: a ReLU by another name."""
    low = args[1] if len(args) > 1 else kwargs.get("min")
    high = args[2] if len(args) > 2 else kwargs.get("max")
    return high is None and isinstance(low, (int, float)) and low == 0


# Names of autograd nodes.
NODE_ACTIVATIONS = {
    "Relu": "relu",
    "LeakyRelu": "leaky_relu",
    "Prelu": "prelu",
    "PreluKernel": "prelu",
    "RreluWithNoise": "rrelu",
    "Elu": "elu",
    "Celu": "celu",
    "Gelu": "gelu",
    "Silu": "silu",
    "Mish": "mish",
    "Softplus": "softplus",
    "Tanh": "tanh",
    "Sigmoid": "sigmoid",
    "LogSigmoid": "logsigmoid",
    "Hardtanh": "hardtanh",
    "Hardswish": "hardswish",
    "Hardsigmoid": "hardsigmoid",
    "Softshrink": "softshrink",
    "Hardshrink": "hardshrink",
    "Threshold": "threshold",
    "Glu": "glu",
    "Sin": "sin",
    "Softmax": "softmax",
    "LogSoftmax": "log_softmax",
    "ClampMin": "relu",
}
NODE_NORMS = frozenset(
    "NativeBatchNorm CudnnBatchNorm MiopenBatchNorm NativeLayerNorm NativeGroupNorm FusedRmsNorm RmsNorm BatchNorm".split()
)
# Nodes that move entries about, or drop some, but do not change their values.
NODE_MOVES = frozenset(
    (
        "View UnsafeView ReshapeAlias Reshape T Transpose Permute Squeeze Unsqueeze Expand ExpandAs Slice Select Clone Contiguous ToCopy "
        "NativeDropout Split SplitWithSizes Unbind Cat Stack Alias AsStrided Index IndexSelect Gather ConstantPadNd ReflectionPad2D "
        "Flatten Unflatten Unfold Roll Flip Repeat Narrow Chunk Movedim Swapaxes PackPaddedSequence PadPackedSequence Identity"
    ).split()
)
# Nodes that pool or resample: values change, but a layer's output is still recognisably the same signal behind them.
NODE_POOLS = frozenset(
    (
        "MaxPool2DWithIndices MaxPool1D MaxPool3DWithIndices AvgPool2D AvgPool1D AvgPool3D AdaptiveAvgPool2D MkldnnAdaptiveAvgPool2D "
        "AdaptiveMaxPool2D AdaptiveAvgPool3D Mean UpsampleNearest2D UpsampleBilinear2D Max Amax"
    ).split()
)
NODE_TRANSPARENT = NODE_MOVES | NODE_POOLS


def node_name(node: Any) -> str:
    """ "AddmmBackward0" -> "Addmm"."""
    return re.sub(r"Backward\d*$", "", node.name())
