"""Normalization: put after layers that have none, taken in another kind, and put in the right order with dropout and bias."""

import ast
from dataclasses import replace

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from gradcheck.analysis.layer_groups import usual_normalization
from gradcheck.analysis.wording import counted
from gradcheck.remedies.definition import RemedyDefinition, rebuilding
from gradcheck.remedies.editing.context import Context, Writer, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.names import Reader, spelled
from gradcheck.remedies.editing.nodes import argument, called, every, insert_after_item, remove_item, set_argument
from gradcheck.remedies.editing.placing import New, in_sequence, put_behind
from gradcheck.remedies.layer_selection import body_layers, weighted_layers
from gradcheck.remedies.modules.rewriting import operand, rewrite
from gradcheck.remedies.modules.surgery import follow, like, module_at, path_now, rewired, swap
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

GROUPS = 8  # at most; Wu and He find 32 groups best for hundreds of channels
KEYS = "keys change: the new layers have weights of their own, and those of a wrapped layer move; old checkpoints do not fit"


def features_of(module: nn.Module, name: str) -> int:
    """Output features or channels. Raises Inapplicable."""
    for key in ("out_features", "out_channels", "nf"):
        if isinstance(size := getattr(module, key, None), int):
            return size
    weight = getattr(module, "weight", None)
    if isinstance(weight, nn.Parameter) and weight.dim() >= 2:
        return weight.shape[0]
    raise Inapplicable(f"the number of features that {name} gives is not known")


def groups_of(channels: int, most: int = GROUPS) -> int:
    """The largest number of groups up to `most` that divides the channels."""
    return max(g for g in range(1, most + 1) if channels % g == 0)


def norm_of(kind: str, features: int, groups: int = GROUPS) -> nn.Module:
    """A normalization by the name of its class in torch.nn."""
    if kind == "GroupNorm":
        return nn.GroupNorm(groups_of(features, groups), features)
    made: nn.Module = getattr(nn, kind)(features)
    return made


# --------------------------------------------------------------------------- inserting one


def insert(treated: TreatedWorkload, fix: Fix) -> None:
    """Puts a normalization after each layer; batch normalization takes away the bias that it would subtract."""
    kind, groups = str(fix.settings["kind"]), int(fix.settings.get("groups", GROUPS))
    with rewired(treated):
        for name in fix.layers:
            layer = module_at(treated, name)
            new = norm_of(_for_layer(kind, layer), features_of(layer, name), groups)
            follow(treated, name, new)
            if fix.settings.get("drop_bias") and isinstance(new, _BatchNorm) and getattr(layer, "bias", None) is not None:
                layer.register_parameter("bias", None)


def _for_layer(kind: str, layer: nn.Module) -> str:
    """The form of a kind for this layer: features are on axis 1 of a convolution, on the last axis of others."""
    if not isinstance(layer, _ConvNd):
        return {"BatchNorm2d": "BatchNorm1d", "BatchNorm3d": "BatchNorm1d", "GroupNorm": "LayerNorm"}.get(kind, kind)
    if kind.startswith("BatchNorm"):
        return f"BatchNorm{layer.weight.dim() - 2}d"
    return "GroupNorm"


def propose_insertion(treatment: RemedyDefinition, finding: Finding | None, m: Measurement) -> list[Fix]:
    """For the layers of the body without a normalization, except heads."""
    if m.norms and any(m.of_kind("attention")):
        return []  # a transformer has its normalizations where they belong
    named = weighted_layers(finding, m)
    body = {x.name for x in body_layers(m)}
    bare = [x for x in named if not x.normalized and x.name in body and ":" not in x.name and x.output_shape]
    if not bare:
        return []
    kind = _FORCED.get(treatment.name) or usual_normalization(m, bare)
    if kind.startswith("BatchNorm"):
        dims = max((len(x.output_shape) - 2 for x in bare if x.kind == "conv"), default=1)
        kind = f"BatchNorm{dims}d"
        bare = [x for x in bare if x.kind == "conv" or len(x.output_shape) == 2]  # features are on axis 1
    if kind == "LayerNorm" and all(x.kind == "conv" for x in bare):
        kind = "GroupNorm"
    if not bare or (kind == "GroupNorm" and any(x.kind != "conv" and len(x.output_shape) != 2 for x in bare)):
        return []
    settings: dict[str, Setting] = {"kind": kind}
    if kind == "GroupNorm":
        settings["groups"] = 1 if treatment.name == "layer-normalization" else groups_of(min(_channels(x) for x in bare))
    if kind.startswith("BatchNorm"):
        settings["drop_bias"] = True
    text = f"normalise the output of {counted(len(bare), 'layer')} with {kind}"
    return [treatment.fix(text, finding, layers=tuple(x.name for x in bare), settings=settings)]


def _channels(layer: Layer) -> int:
    return layer.output_shape[1] if layer.kind == "conv" else layer.output_shape[-1]


_FORCED = {"batch-normalization": "BatchNorm", "layer-normalization": "LayerNorm", "group-normalization": "GroupNorm"}


# ------------------------------------------------------------------------- replacing batch norm


@rebuilding(
    "batch-free-normalization",
    "normalization that needs no batch",
    "Wu and He 2018, Group Normalization; Ba et al. 2016, Layer Normalization",
    checkpoint="weights and biases keep their keys; the running statistics are gone: load old checkpoints with strict=False and train on",
)
def batch_free_normalization(finding: Finding | None, m: Measurement) -> list[Fix]:
    """All batch normalizations of the model: they all see the same batch."""
    norms = {n.layer for n in m.norms if n.batch and n.layer and ":" not in n.layer}
    layers = [x for x in m.layers if x.name in norms and "BatchNorm" in x.type]
    if not layers or finding is None:
        return []
    vector = all(len(x.output_shape) == 2 for x in layers)
    settings: dict[str, Setting] = {"kind": "LayerNorm" if vector else "GroupNorm"}
    if not vector:
        settings["groups"] = groups_of(min(x.output_shape[1] for x in layers))
    text = f"replace {counted(len(layers), 'batch normalization')} by {settings['kind']}, which needs no batch"
    return [batch_free_normalization.fix(text, finding, layers=tuple(x.name for x in layers), settings=settings)]


@batch_free_normalization.applies
def without_batch(treated: TreatedWorkload, fix: Fix) -> None:
    """GroupNorm, or LayerNorm for vectors, with gain and bias of the batch normalization that it replaces."""
    groups = int(fix.settings.get("groups", GROUPS))
    with rewired(treated):
        for name in fix.layers:
            old = module_at(treated, name)
            if not isinstance(old, _BatchNorm):
                raise Inapplicable(f"{name} is not a batch normalization of torch")
            vector = fix.settings["kind"] == "LayerNorm"
            new = like(norm_of("LayerNorm" if vector else "GroupNorm", old.num_features, groups), old)
            if old.affine:
                new.weight, new.bias = old.weight, old.bias
            swap(treated, name, new)


# ----------------------------------------------------------------------------- bias and dropout


@rebuilding(
    "remove-bias",
    "no bias before batch normalization",
    "Ioffe and Szegedy 2015, Batch Normalization, section 3.2",
    checkpoint="the keys of these biases are gone: load old checkpoints with strict=False",
)
def remove_bias(finding: Finding | None, m: Measurement) -> list[Fix]:
    if finding is None:
        return []
    names = tuple(x for x in finding.layers if ":" not in x)
    text = f"create {counted(len(names), 'layer')} before batch normalization with bias=False"
    return [remove_bias.fix(text, finding, layers=names)] if names else []


@remove_bias.applies
def apply_remove_bias(treated: TreatedWorkload, fix: Fix) -> None:
    with rewired(treated):
        for name in fix.layers:
            module = module_at(treated, name)
            if module._parameters.get("bias") is None:
                raise Inapplicable(f"{name} has no bias of its own")
            module.register_parameter("bias", None)


@rebuilding(
    "move-dropout",
    "dropout behind the last batch normalization",
    "Li et al. 2019, Understanding the Disharmony between Dropout and Batch Normalization by Variance Shift",
    checkpoint="the key of the normalization changes where both are entries of one nn.Sequential",
)
def move_dropout(finding: Finding | None, m: Measurement) -> list[Fix]:
    """The dropout moves after the last batch normalization that it disturbs."""
    hit = next((n for n in m.norms if n.dropout is not None and finding is not None and n.layer in finding.layers), None)
    if hit is None or hit.dropout is None:
        return []
    norm = [n for n in m.norms if n.dropout == hit.dropout][-1].layer
    layer = m.layer(hit.dropout)
    text, rate = f"move the dropout behind the batch normalization {norm}", {"rate": hit.dropout_rate}
    if layer is not None and layer.kind == "dropout":
        return [move_dropout.fix(text, finding, layers=(layer.name, norm), settings=rate)]
    calls = m.regularization.dropouts if m.regularization is not None else ()
    call = next((d for d in calls if ":" in d.layer and d.layer.partition(":")[0] == hit.dropout and d.site is not None), None)
    if call is None:
        return []
    made = move_dropout.fix(text, finding, layers=(call.layer, norm), settings=rate)
    return [replace(made, location=call.site)]


@move_dropout.applies
def apply_move_dropout(treated: TreatedWorkload, fix: Fix) -> None:
    """Takes the dropout away where it is, and puts it after the normalization; inside one nn.Sequential it changes places."""
    dropout, norm = fix.layers
    with rewired(treated):
        if ":" in dropout:
            rewrite(treated, fix.location, operand)
            moved: nn.Module = nn.Dropout(float(fix.settings["rate"]))
        else:
            moved = module_at(treated, dropout)
            if _reordered(treated, dropout, norm):
                return
            swap(treated, dropout, nn.Identity())
        follow(treated, norm, moved)


def _reordered(treated: TreatedWorkload, dropout: str, norm: str) -> bool:
    """Whether both are entries of one nn.Sequential; they are then in their new order."""
    (home, _, first), (other, _, last) = (path_now(treated, name).rpartition(".") for name in (dropout, norm))
    parent = treated.model.get_submodule(home)
    if home != other or not isinstance(parent, nn.Sequential):
        return False
    keys, modules = list(parent._modules), list(parent)
    start, end = keys.index(first), keys.index(last)
    modules.insert(end, modules.pop(start))
    prefix = f"{home}." if home else ""
    for key, module in zip(keys, modules, strict=True):
        parent._modules[key] = module
    shifted = [(f"{prefix}{keys[i]}", f"{prefix}{keys[i - 1]}") for i in range(start + 1, end + 1)]
    aside = f"{prefix}(moved)"
    treated.renames.extend([(f"{prefix}{first}", aside), *shifted, (aside, f"{prefix}{last}")])
    return True


def _inserting(name: str, title: str, citation: str) -> RemedyDefinition:
    @rebuilding(name, title, citation, checkpoint=KEYS)
    def inserting(finding: Finding | None, m: Measurement) -> list[Fix]:
        return propose_insertion(inserting, finding, m)

    inserting.applies(insert)
    return inserting


_IOFFE = "Ioffe and Szegedy 2015, Batch Normalization"
INSERTING = (
    _inserting("insert-normalization", "normalization of the layers' outputs", _IOFFE),
    _inserting("batch-normalization", "batch normalization", _IOFFE),
    _inserting("layer-normalization", "layer normalization", "Ba et al. 2016, Layer Normalization"),
    _inserting("group-normalization", "group normalization", "Wu and He 2018, Group Normalization"),
)
REMEDIES = (*INSERTING, batch_free_normalization, remove_bias, move_dropout)


MOST_GROUPS = 8


def write_norm(p: Fix, context: Context) -> None:
    kind = word(p, "kind", "LayerNorm")
    biased = [x for x in p.layers if p.settings.get("drop_bias") and _loses_bias(context, x)]
    put_behind(context, p.layers, New(lambda draft, call: _norm(p, context, draft, call, kind), "norm"))
    for place in context.sites(biased):
        draft, call = context.call_at(place)
        if argument(call, "bias") is None:
            set_argument(draft, call, "bias", "False")


def _norm(p: Fix, context: Context, draft: Draft, call: ast.Call, kind: str) -> str:
    """ "nn.BatchNorm1d(64)", with the width as the layer's creation writes it."""
    conv = "Conv" in called(call)
    width = argument(call, "out_channels" if conv else "out_features", 1)
    if width is None:
        raise draft.refusal(call, "the width of the layer is not written there")
    text = draft.source(width)
    dims = called(call)[-2:]
    if kind.startswith("BatchNorm"):
        kind = f"BatchNorm{dims}" if conv else "BatchNorm1d"
    elif conv:
        kind = "GroupNorm"
    elif kind == "GroupNorm":
        kind = "LayerNorm"
    groups = f"{round(number(p, 'groups', MOST_GROUPS))}, " if kind == "GroupNorm" else ""
    return f"{spelled(draft, 'torch.nn.' + kind)}({groups}{text})"


def _loses_bias(context: Context, name: str) -> bool:
    """No code of the user's touches the bias of the layer."""
    for draft in context.all_drafts():
        reader = Reader(context, draft)
        if any(node.attr == "bias" and name in reader.layers(node.value) for node in every(draft.tree, ast.Attribute)):
            return False
    return True


def batch_free(p: Fix, context: Context) -> None:
    kind = word(p, "kind", "GroupNorm")
    groups = f"{round(number(p, 'groups', MOST_GROUPS))}, " if kind == "GroupNorm" else ""
    for place in context.sites(p.layers):
        draft, call = context.call_at(place)
        width = argument(call, "num_features", 0)
        if width is None or "BatchNorm" not in called(call):
            raise Unwritable(f"{place}: no batch normalization of torch is created there")
        draft.replace(call, f"{spelled(draft, f'torch.nn.{kind}')}({groups}{draft.source(width)})")


def write_without_bias(p: Fix, context: Context) -> None:
    for place in context.sites(p.layers):
        if others := set(context.made_at(place)) - set(p.layers):
            raise Unwritable(f"{place} makes {min(others)} too, which keeps its bias")
        if any(not _loses_bias(context, x) for x in context.made_at(place)):
            raise Unwritable(f"{place}: other code of yours reads or sets the bias")
        draft, call = context.call_at(place)
        set_argument(draft, call, "bias", "False")


def write_moved_dropout(p: Fix, context: Context) -> None:
    """After the normalization, where both are items of one Sequential or list."""
    if len(p.layers) != 2:
        raise Unwritable("the dropout and the normalization are not both modules")
    places = [context.site(x) for x in p.layers]
    (draft, dropout), (other, norm) = (context.call_at(x) for x in places)
    parent = draft.parent(dropout)
    if other is not draft or parent is not draft.parent(norm) or not in_sequence(draft, dropout):
        raise Unwritable(f"{places[0]}: dropout and normalization are not items of one Sequential")
    items = list(parent.args) if isinstance(parent, ast.Call) else list(getattr(parent, "elts", []))
    text = draft.source(dropout)
    remove_item(draft, dropout, items)
    insert_after_item(draft, norm, text)


def query_norm(p: Fix, context: Context) -> None:
    """LayerNorm after the projections to queries and to keys."""
    names = [x for x in word(p, "projections").split(",") if x]
    if len(names) != 2 * len(p.layers):
        raise Unwritable("queries and keys are not made by a layer each")
    put_behind(context, names, New(lambda draft, call: _norm(p, context, draft, call, "LayerNorm"), "norm"))


WRITERS: dict[str, Writer] = {
    "qk-norm": query_norm,
    "insert-normalization": write_norm,
    "batch-normalization": write_norm,
    "layer-normalization": write_norm,
    "group-normalization": write_norm,
    "batch-free-normalization": batch_free,
    "remove-bias": write_without_bias,
    "move-dropout": write_moved_dropout,
}
