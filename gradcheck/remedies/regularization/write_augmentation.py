"""Augmentations: a collate function of the training loader redraws them for every batch."""

import ast
from collections.abc import Callable
from functools import partial

from gradcheck.remedies.data.write_batches import training_loader
from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import Function, argument, calls_in, set_argument
from gradcheck.remedies.editing.statements import insert_before, insert_definition
from gradcheck.types.fix import Fix

NAME = "augmented"
X, Y = "inputs", "targets"

Code = Callable[[Fix, Context, Draft], str]  # statements about `inputs` and `targets`


def _writer(code: Code) -> Writer:
    def write(p: Fix, context: Context) -> None:
        draft, loader = training_loader(context)
        _check(context, draft, loader)
        text = code(p, context, draft)
        function = next((n for n in draft.tree.body if isinstance(n, Function) and n.name == NAME), None)
        if function is not None:
            insert_before(draft, function.body[-1], text)
            return
        set_argument(draft, loader, "collate_fn", NAME)
        insert_definition(draft, loader, _function(draft, text))

    return write


def _function(draft: Draft, text: str) -> str:
    collate, tensor = (spelled(draft, f"torch.{x}") for x in ("utils.data.default_collate", "Tensor"))
    body = "".join(f"    {line}\n" for line in text.split("\n"))
    return f'''
def {NAME}(samples: list[tuple[{tensor}, {tensor}]]) -> tuple[{tensor}, {tensor}]:
    """A training batch, with what is redrawn for each."""
    {X}, {Y} = {collate}(samples)
{body}    return {X}, {Y}
'''


def _check(context: Context, draft: Draft, loader: ast.Call) -> None:
    given = argument(loader, "collate_fn")
    if given is not None and draft.source(given) != NAME:
        raise Unwritable(f"{draft.path}:{loader.lineno}: the loader has a collate function of its own")
    if argument(loader, "batch_size", 1) is None and argument(loader, "batch_sampler") is None:
        raise Unwritable(f"{draft.path}:{loader.lineno}: the loader makes no batches")
    datasets = calls_in(draft.tree, "TensorDataset")
    if any(len(n.args) != 2 for n in datasets) or [x.name for x in context.measurement.data.inputs] != ["0"]:
        raise Unwritable(f"{draft.path}:{loader.lineno}: a batch is more than an input and a target")


def _flip(p: Fix, context: Context, draft: Draft) -> str:
    rand = spelled(draft, "torch.rand")
    return f"flipped = {rand}(len({X})) < 0.5\n{X}[flipped] = {X}[flipped].flip(-1)"


def _windows(mode: str, p: Fix, context: Context, draft: Draft) -> str:
    """A window of the image's size out of the padded image, anywhere."""
    sizes = context.measurement.data.inputs[0].shape[2:]
    if len(sizes) != 2:
        raise Unwritable("the input is not a batch of images")
    high, wide = (round(number(p, "share") * size) for size in sizes)
    if not high or not wide:
        raise Unwritable("the images are too small to be shifted")
    pad, randint, stack = (spelled(draft, f"torch.{x}") for x in ("nn.functional.pad", "randint", "stack"))
    return (
        f"height, width = {X}.shape[-2:]\n"
        f"padded = {pad}({X}, ({wide}, {wide}, {high}, {high}){mode})\n"
        f"corners = zip({randint}({2 * high + 1}, (len({X}),)), {randint}({2 * wide + 1}, (len({X}),)), strict=True)\n"
        f"{X} = {stack}([x[:, i : i + height, j : j + width] for x, (i, j) in zip(padded, corners, strict=True)])"
    )


def _noise(p: Fix, context: Context, draft: Draft) -> str:
    normal = spelled(draft, "torch.randn_like")
    return f"{X} = {X} + {literal(number(p, 'scale'))} * {X}.std(0, correction=0) * {normal}({X})"


def _mixup(p: Fix, context: Context, draft: Draft) -> str:
    if any(c.target_kind != "values" for c in context.measurement.losses):
        raise Unwritable("the targets are class numbers: the loop has to take the loss for both of those that are mixed")
    alpha = literal(number(p, "alpha"))
    beta, order = spelled(draft, "torch.distributions.Beta"), spelled(draft, "torch.randperm")
    mixed = "\n".join(f"{t} = share * {t} + (1 - share) * {t}[order]" for t in (X, Y))
    return f"share, order = {beta}({alpha}, {alpha}).sample(), {order}(len({X}))\n{mixed}"


def _tokens(p: Fix, context: Context, draft: Draft) -> str:
    randint, where, rand = (spelled(draft, f"torch.{x}") for x in ("randint", "where", "rand"))
    return (
        f"others = {X}.flatten()[{randint}({X}.numel(), {X}.shape)]\n"
        f"{X} = {where}({rand}({X}.shape) < {literal(number(p, 'rate'))}, others, {X})"
    )


WRITERS: dict[str, Writer] = {
    "random-flip": _writer(_flip),
    "random-shift": _writer(partial(_windows, ', mode="replicate"')),
    "random-crop": _writer(partial(_windows, "")),
    "input-noise": _writer(_noise),
    "mixup": _writer(_mixup),
    "token-dropout": _writer(_tokens),
}
