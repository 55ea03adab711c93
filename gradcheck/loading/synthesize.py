"""Random inputs: as `--input` says, or as the model's layers suggest."""

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.loading.transformers_inputs import is_transformer, transformer_inputs
from gradcheck.workload.device import FLOATS
from gradcheck.workload.step import ForwardSignature, Inputs, call, forward_of
from gradcheck.workload.tensors import tensors_of

# How many fixed random batches stand in for data.
BATCHES = 2
_MOST_TRIES = 60
_SPEC = re.compile(r"(?:(?P<name>\w+)=)?(?P<dtype>\w+)(?:<(?P<bound>\d+)>)?\[(?P<shape>[\d,\s]*)\]")
_INTEGERS = {name: getattr(torch, name) for name in ("int64", "int32", "int16", "int8", "uint8", "long")}
_OTHERS = {"bool": torch.bool, "complex64": torch.complex64, "complex128": torch.complex128}
# Without a bound, whole numbers for a model without embeddings are below this.
_SMALL_BOUND = 10

# A maker draws one input from a generator.
Maker = Callable[[torch.Generator], torch.Tensor]


def requested_inputs(texts: Sequence[str], model: nn.Module) -> Callable[[torch.Generator], Any]:
    """A maker of batches like "float32[32,10]", "int64<1000>[4,128]", "name=float32[8,3]". Raises TargetError on other texts."""
    makers: list[tuple[str, Maker]] = []
    for text in texts:
        match = _SPEC.fullmatch(text.strip())
        kinds = {**_INTEGERS, **FLOATS, **_OTHERS}
        if match is None or match["dtype"] not in kinds:
            raise TargetError(
                f"--input {text!r} cannot be read",
                hint="write DTYPE[SHAPE]: float32[32,3,224,224], int64<1000>[4,128], or NAME=float32[8,10]",
            )
        shape = tuple(int(size) for size in match["shape"].split(",") if size.strip())
        bound = int(match["bound"]) if match["bound"] else min((e.num_embeddings for e in _embeddings(model)), default=_SMALL_BOUND)
        makers.append((match["name"] or "", _maker(kinds[match["dtype"]], shape, bound)))
    names = [name for name, _ in makers]
    if any(names) and not all(names):
        raise TargetError("--input has a name in some places and none in others", hint="name all of them or none")
    if all(names):
        return lambda generator: {name: maker(generator) for name, maker in makers}
    return lambda generator: tuple(maker(generator) for _, maker in makers)


def _maker(dtype: torch.dtype, shape: tuple[int, ...], bound: int) -> Maker:
    if dtype in _INTEGERS.values():
        return lambda generator: torch.randint(bound, shape, generator=generator, device="cpu").to(dtype)
    if dtype == torch.bool:
        return lambda generator: torch.randint(2, shape, generator=generator, device="cpu").bool()
    drawn = dtype if dtype.is_complex else torch.float32
    return lambda generator: torch.randn(shape, generator=generator, dtype=drawn, device="cpu").to(dtype)


def invented_inputs(model: nn.Module) -> Iterator[tuple[Callable[[torch.Generator], Inputs], str]]:
    """Makers of inputs that the model may accept, most likely first, with words for each."""
    if is_transformer(model):
        yield from transformer_inputs(model)
    forward = forward_of(model)
    single = list(_single_inputs(model))
    count = max(1, len(forward.required))
    options = [((text,), (maker,)) for maker, text in single] if count == 1 else list(_several_inputs(forward, model, single))
    for texts, makers in options:
        yield _together(forward, makers), ", ".join(texts)


def _together(forward: ForwardSignature, makers: Sequence[Maker]) -> Callable[[torch.Generator], Inputs]:
    """One input goes by position; several by name, so that a batch of them has no element that looks like a target."""
    if len(makers) == 1 or len(forward.positional) < len(makers):
        return lambda generator: tuple(maker(generator) for maker in makers)
    return lambda generator: {name: maker(generator) for name, maker in zip(forward.positional, makers, strict=False)}


def _several_inputs(
    forward: ForwardSignature, model: nn.Module, single: list[tuple[Maker, str]]
) -> Iterator[tuple[tuple[str, ...], tuple[Maker, ...]]]:
    """The same input for each argument; one layer's input for each argument in turn; then all pairs of the first few."""
    count = len(forward.required)
    for maker, text in single:
        yield (text,) * count, (maker,) * count
    by_layer = [options[0] for layer in _first_layers(model) if (options := list(_inputs_of(layer, model)))]
    if len(by_layer) >= count:
        yield tuple(text for _, text in by_layer[:count]), tuple(maker for maker, _ in by_layer[:count])
    for chosen in itertools.product(single[:6], repeat=count if count <= 2 else 0):
        if chosen:
            yield tuple(text for _, text in chosen), tuple(maker for maker, _ in chosen)


def _single_inputs(model: nn.Module) -> Iterator[tuple[Maker, str]]:
    seen: set[str] = set()
    for layer in _first_layers(model):
        for maker, text in _inputs_of(layer, model):
            if text not in seen:
                seen.add(text)
                yield maker, text
    for _, parameter in model.named_parameters():  # a model of bare parameters
        if parameter.ndim >= 1 and not isinstance(parameter, nn.UninitializedParameter):
            for size in dict.fromkeys((parameter.shape[-1], parameter.shape[0])):
                maker, text = _floats(32, size)
                if text not in seen:
                    seen.add(text)
                    yield maker, text


def _first_layers(model: nn.Module) -> Iterator[nn.Module]:
    """Layers whose type and sizes say what they take, in order of registration."""
    for module in model.modules():
        if any(True for _ in _inputs_of(module, model)):
            yield module


def _inputs_of(layer: nn.Module, model: nn.Module) -> Iterator[tuple[Maker, str]]:
    if isinstance(layer, (nn.Embedding, nn.EmbeddingBag)):
        yield from _tokens(layer.num_embeddings, model)
    elif isinstance(layer, nn.modules.conv._ConvNd):
        yield from _signals(layer)
    elif isinstance(layer, (nn.RNNBase, nn.RNNCellBase)):
        first = getattr(layer, "batch_first", True)
        shape = (16,) if isinstance(layer, nn.RNNCellBase) else (16, 20) if first else (20, 16)
        yield _floats(*shape, layer.input_size)
    elif isinstance(layer, (nn.Linear, nn.Bilinear)):
        width = layer.in_features if isinstance(layer, nn.Linear) else layer.in1_features
        yield from (_floats(*lead, width or 16) for lead in ((32,), (16, 16)))
    elif isinstance(layer, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.MultiheadAttention)):
        attention = layer if isinstance(layer, nn.MultiheadAttention) else layer.self_attn
        yield _floats(*((8, 16) if attention.batch_first else (16, 8)), attention.embed_dim)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        for tail in {nn.BatchNorm1d: ((), (16,)), nn.BatchNorm2d: ((32, 32),), nn.BatchNorm3d: ((8, 16, 16),)}.get(type(layer), ()):
            yield _floats(32, layer.num_features, *tail)
    elif isinstance(layer, nn.LayerNorm):
        for lead in ((32,), (8, 16)):
            yield _floats(*lead, *layer.normalized_shape)


def _tokens(size: int, model: nn.Module) -> Iterator[tuple[Maker, str]]:
    """Whole numbers below the embedding's size, or the smallest one of the model; no longer than the smallest embedding is."""
    smallest = min(e.num_embeddings for e in _embeddings(model))
    for bound in dict.fromkeys((size, smallest)):
        for shape in ((4, 32), (4, 16), (4, 8), (4, 128), (32,)):
            if len(shape) == 1 or shape[1] <= max(smallest, 8):
                yield _maker(torch.int64, shape, bound), f"int64<{bound}>{list(shape)}"


def _signals(layer: nn.modules.conv._ConvNd) -> Iterator[tuple[Maker, str]]:
    """64 pixels first: 32 leave a stride-32 network one pixel, too few for its normalization."""
    dimensions = len(layer.kernel_size)
    channels = layer.in_channels or 3
    sizes: tuple[tuple[int, ...], ...]
    if layer.transposed:
        sizes = tuple((side,) * dimensions for side in (1, 4, 8, 16, 32))
    elif dimensions == 1:
        sizes = ((128,), (64,), (256,), (1000,), (16000,), (32,))
    elif dimensions == 2:
        sizes = tuple((side, side) for side in (64, 32, 28, 96, 128, 224, 256, 299, 48, 512))
    else:
        sizes = ((16, 32, 32), (8, 64, 64), (16, 112, 112), (32, 32, 32))
    for size in sizes:
        yield _floats(8, channels, *size)


def _floats(*shape: int) -> tuple[Maker, str]:
    return _maker(torch.float32, shape, 0), f"float32{list(shape)}"


def _embeddings(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))]


def find_inputs(model: nn.Module, place: Callable[[Any], Any], seed: int) -> tuple[Callable[[torch.Generator], Inputs], str, Any]:
    """The first invented inputs that `model`, a copy, runs on, and its output if it is that of training. Raises TargetError."""
    forward = forward_of(model)
    if not any((forward.required, forward.positional, forward.any_positional, forward.keywords, forward.any_keyword)):
        return lambda generator: (), "no input", None
    tried: list[str] = []
    failure: Exception | None = None
    for make, text in itertools.islice(invented_inputs(model), _MOST_TRIES):
        inputs = place(make(torch.Generator().manual_seed(seed)))
        try:
            output = _output(model, inputs)
        except Exception as error:
            failure = failure or error
            tried.append(text)
            continue
        if any(tensor.is_floating_point() or tensor.is_complex() for tensor in tensors_of(_plain(output))):
            trained = model.training and isinstance(inputs, tuple) and any(t.requires_grad for t in tensors_of(output))
            return make, text, output if trained else None
        tried.append(text)
    told = str(failure or "").strip().partition("\n")[0][:200]
    first = f"; the first one raised {type(failure).__name__}: {told}" if told else ""
    some = f"tried {', '.join(tried[:4])}{' and more' if len(tried) > 4 else ''}{first}"
    what = some if tried else "none of its layers says what it takes"
    raise TargetError(
        f"no data were given, and no input was found that the model runs on ({what})",
        hint="say its shape, --input float32[32,3,224,224], or define `batch` or `train_loader` in the file, or pass --data",
    )


def _output(model: nn.Module, inputs: Inputs) -> Any:
    try:
        return call(model, inputs)
    except RuntimeError as error:
        if not re.search("grad|Backward", str(error)):
            raise
        with torch.no_grad():  # not to blame the inputs; the error is told later
            return call(model, inputs)


def _plain(output: Any) -> Any:
    return vars(output) if hasattr(output, "__dataclass_fields__") and not isinstance(output, dict) else output
