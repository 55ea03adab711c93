"""Transformers: where their blocks normalise, and how large the attention's logits start."""

import ast
import copy
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import nn

from gradcheck.analysis.wording import counted, number
from gradcheck.remedies.definition import initial, rebuilding
from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import argument, called, every, forward_of, names_in, set_argument
from gradcheck.remedies.editing.statements import insert_before
from gradcheck.remedies.layer_selection import is_tuned
from gradcheck.remedies.modules.rewriting import Substitute, bind, method_of
from gradcheck.remedies.modules.surgery import follow, like, module_at, rewired
from gradcheck.remedies.normalization.layers import features_of
from gradcheck.types.checks import Attention
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload

BLOCKS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)
STACKS = (nn.TransformerEncoder, nn.TransformerDecoder)

QUERIES = ("q_proj", "query", "to_q", "wq", "w_q", "q", "q_lin", "queries", "linear_q", "query_proj")
KEYS = ("k_proj", "key", "to_k", "wk", "w_k", "k", "k_lin", "keys", "linear_k", "key_proj")
FUSED = ("qkv", "c_attn", "in_proj", "to_qkv", "qkv_proj", "wqkv", "w_qkv", "query_key_value", "proj_qkv")  # [q, k, v]


# --------------------------------------------------------------------------------- pre-norm


@rebuilding(
    "pre-norm",
    "normalization before each branch",
    "Xiong et al. 2020, On Layer Normalization in the Transformer Architecture",
    checkpoint="torch's stacks get the keys of a last normalization; weights trained with the other order do not fit",
)
def pre_norm(finding: Finding | None, m: Measurement) -> list[Fix]:
    """For norms that take the sum of a bypass and a branch."""
    norms = tuple(dict.fromkeys(n.layer for n in m.norms if n.added and ":" not in n.layer))
    if finding is None or not norms:
        return []
    text = f"normalise the input of each branch instead of the sum, in {counted(len(norms), 'place')} (norm_first=True)"
    return [pre_norm.fix(text, finding, layers=norms)]


@pre_norm.applies
def apply_pre_norm(treated: TreatedWorkload, fix: Fix) -> None:
    """norm_first=True in torch's blocks, and one more normalization at the end of their stack; the like in blocks of the user."""
    with rewired(treated):
        if not (_torch_blocks(treated) | _own_blocks(treated, fix)):
            raise Inapplicable("its blocks have no form that can be turned: norm(x + f(x))")


def _torch_blocks(treated: TreatedWorkload) -> bool:
    blocks = [b for b in treated.model.modules() if isinstance(b, BLOCKS) and not b.norm_first]
    for block in blocks:
        block.norm_first = True
    for stack in treated.model.modules():
        if isinstance(stack, STACKS) and stack.norm is None and any(block in set(stack.layers) for block in blocks):
            width = stack.layers[0].norm1.normalized_shape
            stack.norm = like(nn.LayerNorm(width), stack)
            if isinstance(stack, nn.TransformerEncoder):
                stack.use_nested_tensor = False  # torch's fast path is for the other order
    return bool(blocks)


def _own_blocks(treated: TreatedWorkload, fix: Fix) -> bool:
    """self.norm(x + f(x)) becomes x + f(self.norm(x)) in every module that holds one of the norms."""
    turned = False
    for owner in dict.fromkeys(name.rpartition(".")[0] for name in fix.layers):
        holder = module_at(treated, owner)
        if isinstance(holder, BLOCKS):
            continue
        method = method_of(treated, holder, "forward")
        turner = _Turn({key for key, child in holder.named_children() if "norm" in type(child).__name__.lower()})
        tree = turner.visit(copy.deepcopy(method.tree))
        if turner.turned:
            bind(method, tree)
            turned = True
    return turned


class _Turn(ast.NodeTransformer):
    """Turns self.norm(x + f(x)), for these attributes, into x + f(self.norm(x))."""

    def __init__(self, norms: set[str]) -> None:
        self.norms, self.turned = norms, 0

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        one = _post_norm(node, self.norms)
        if one is None:
            return node
        self.turned += 1
        normed: dict[ast.expr, ast.expr] = {use: ast.Call(node.func, [use], []) for use in one.uses}
        return ast.copy_location(ast.BinOp(one.bypass, ast.Add(), Substitute(normed).visit(one.branch)), node)


# ------------------------------------------------------------------------ queries and keys


def projections(owner: nn.Module) -> dict[str, str]:
    """Names of the modules, inside an attention module, that make queries and keys: {"query": ..., "key": ...}, or {"fused": ...}."""
    found: dict[str, str] = {}
    for path, child in owner.named_modules():
        last = path.rpartition(".")[2].lower()
        if not isinstance(getattr(child, "weight", None), nn.Parameter):
            continue
        for kind, names in (("query", QUERIES), ("key", KEYS), ("fused", FUSED)):
            if last in names:
                found.setdefault(kind, path)
    return found if {"query", "key"} <= found.keys() or "fused" in found else {}


@initial(
    "smaller-query-key-init",
    "smaller initial queries and keys",
    "Vaswani et al. 2017, Attention Is All You Need, section 3.2.1; Zhai et al. 2023, Stabilizing Transformer Training",
)
def smaller_query_key_init(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Both by 1 / sqrt(std), so that the logits start with a standard deviation of 1."""
    hit = [a for a in _sharp(finding, m) if a.logit_std is not None and a.logit_std > 1]
    if is_tuned(m) or not hit:
        return []
    factor = max(a.logit_std or 1.0 for a in hit) ** -0.5
    text = f"multiply the weights of queries and keys by {number(factor)} each: their logits then start with standard deviation 1"
    layers = tuple(dict.fromkeys(a.layer.partition(":")[0] for a in hit))
    return [smaller_query_key_init.fix(text, finding, layers=layers, settings={"factor": factor})]


@smaller_query_key_init.applies
def smaller(treated: TreatedWorkload, fix: Fix) -> None:
    """Multiplies the weights and biases that make queries and keys."""
    factor = float(fix.settings["factor"])
    with torch.no_grad():
        for name in fix.layers:
            parts = list(_query_key_parts(module_at(treated, name)))
            if not parts:
                raise Inapplicable(f"what makes the queries and keys of {name} was not found")
            for part in parts:
                part.mul_(factor)


def _query_key_parts(owner: nn.Module) -> Iterator[torch.Tensor]:
    """The rows of weights and biases that make queries and keys."""
    if isinstance(owner, nn.MultiheadAttention):
        width = owner.embed_dim
        if owner.in_proj_weight is not None:
            yield owner.in_proj_weight[: 2 * width]
        else:
            yield from (owner.q_proj_weight, owner.k_proj_weight)
        if owner.in_proj_bias is not None:
            yield owner.in_proj_bias[: 2 * width]
        return
    found = projections(owner)
    for kind in ("query", "key") if "query" in found else ("fused",) if found else ():
        module = owner.get_submodule(found[kind])
        for tensor in (p for p in (module._parameters.get("weight"), module._parameters.get("bias")) if p is not None):
            if kind == "fused":
                axis = 1 if type(module).__name__ == "Conv1D" and tensor.dim() == 2 else 0
                yield tensor.narrow(axis, 0, tensor.shape[axis] // 3 * 2)
            else:
                yield tensor


def _sharp(finding: Finding | None, m: Measurement) -> list[Attention]:
    return [a for a in m.attentions if finding is not None and (not finding.layers or a.layer in finding.layers)]


@rebuilding(
    "qk-norm",
    "normalised queries and keys",
    "Dehghani et al. 2023, Scaling Vision Transformers to 22 Billion Parameters; Henry et al. 2020, Query-Key Normalization",
    checkpoint="keys change: the projections move into an nn.Sequential with their normalization",
)
def qk_norm(finding: Finding | None, m: Measurement) -> list[Fix]:
    hit = _sharp(finding, m)
    if not hit:
        return []
    layers = tuple(dict.fromkeys(a.layer.partition(":")[0] for a in hit))
    text = f"normalise queries and keys of {counted(len(layers), 'attention layer')} with LayerNorm before their product"
    settings: dict[str, Setting] = {"projections": ",".join(name for owner in layers for name in _projections_of(m, owner))}
    return [qk_norm.fix(text, finding, layers=layers, settings=settings)]


@qk_norm.applies
def normalise_queries(treated: TreatedWorkload, fix: Fix) -> None:
    """LayerNorm after the projections to queries and to keys."""
    with rewired(treated):
        for name in fix.layers:
            owner = module_at(treated, name)
            found = projections(owner)
            if "query" not in found:
                why = "one matrix makes queries, keys and values" if found or isinstance(owner, nn.MultiheadAttention) else "no projections"
                raise Inapplicable(f"{name} has no separate projections to queries and keys: {why}")
            for kind in ("query", "key"):
                path = f"{name}.{found[kind]}" if name else found[kind]
                follow(treated, path, nn.LayerNorm(features_of(module_at(treated, path), path)))


def _projections_of(m: Measurement, owner: str) -> list[str]:
    """Names of the layers that make an attention's queries and its keys."""
    below = [x.name for x in m.layers if not owner or x.name.startswith(f"{owner}.")]
    found = [next((x for x in below if x.rpartition(".")[2].lower() in names), None) for names in (QUERIES, KEYS)]
    return [x for x in found if x is not None]


REMEDIES = (pre_norm, smaller_query_key_init, qk_norm)


NAME = "normed"  # of a normalised input that a branch uses several times


class PostNorm(NamedTuple):
    """`self.norm(x + f(x))`."""

    call: ast.Call
    bypass: ast.Name
    branch: ast.expr
    uses: list[ast.Name]  # of x in the branch


def turn(p: Fix, context: Context) -> None:
    owners = list(dict.fromkeys(x.rpartition(".")[0] for x in p.layers))
    blocks = [x for x in owners if context.layer(x).type in ("TransformerEncoderLayer", "TransformerDecoderLayer")]
    _write_torch_blocks(context, blocks)
    for kind in dict.fromkeys(context.layer(x).type for x in owners if x not in blocks):
        _write_own_blocks(context, kind, {x.rpartition(".")[2] for x in p.layers if context.layer(x.rpartition(".")[0]).type == kind})


def _write_torch_blocks(context: Context, blocks: Sequence[str]) -> None:
    """And a normalization at the end of their stack."""
    for place in context.sites(blocks):
        draft, call = context.call_at(place)
        set_argument(draft, call, "norm_first", "True")
    stacks = {x.rpartition(".layers.")[0] for x in blocks if ".layers." in x or x.startswith("layers.")}
    for place in context.sites(sorted(stacks)):
        draft, call = context.call_at(place)
        if called(call) in ("TransformerEncoder", "TransformerDecoder") and argument(call, "norm", 2) is None:
            set_argument(draft, call, "norm", f"{spelled(draft, 'torch.nn.LayerNorm')}({_width(context, blocks)})")


def _width(context: Context, blocks: Sequence[str]) -> str:
    draft, call = context.call_at(context.site(blocks[0]))
    width = argument(call, "d_model", 0)
    return draft.source(width) if width is not None else str(context.layer(blocks[0]).output_shape[-1])


def _write_own_blocks(context: Context, kind: str, norms: set[str]) -> None:
    """Raises Unwritable when the class is not one of the user's files, or none of its sums is normalised in one expression."""
    draft = next((d for d in context.all_drafts() if forward_of(d, kind) is not None), None)
    if draft is None:
        raise Unwritable(f"{kind} is not a class in your files with a forward of its own")
    found = _sums(draft, kind, norms)
    if not found:
        raise Unwritable(f"{draft.path}: the forward of {kind} has to be turned by hand: x + f(norm(x)) in place of norm(x + f(x))")
    if any(len(one.uses) > 1 for one in found) and NAME in names_in(draft.tree):
        raise Unwritable(f"{draft.path}: the name {NAME} is taken")
    while found := _sums(draft, kind, norms):
        _turn(draft, found[0])


def _turn(draft: Draft, one: PostNorm) -> None:
    """A branch that uses its input several times, as attention does, gets the normalised input by a name."""
    norm = f"{draft.source(one.call.func)}({one.bypass.id})"
    several = len(one.uses) > 1
    edits = [Edit(*draft.span(use), NAME if several else norm) for use in one.uses]
    (start, end), (first, last) = draft.span(one.call), draft.span(one.call.args[0])
    if isinstance(draft.parent(one.call), (ast.Assign, ast.Return)) and "\n" not in draft.source(one.call):
        edits += [Edit(start, first, ""), Edit(last, end, "")]
    else:  # its brackets stay
        edits.append(Edit(*draft.span(one.call.func), ""))
    draft.edit(edits)
    if several:
        insert_before(draft, one.call, f"{NAME} = {norm}")


def _sums(draft: Draft, kind: str, norms: set[str]) -> list[PostNorm]:
    """In the order of the source."""
    forward = forward_of(draft, kind)
    found = [one for node in ast.walk(forward) if (one := _post_norm(node, norms)) is not None] if forward is not None else []
    return sorted(found, key=lambda one: (one.call.lineno, one.call.col_offset))


def _post_norm(node: ast.AST, norms: set[str]) -> PostNorm | None:
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or len(node.args) != 1:
        return None
    if node.func.attr not in norms or not isinstance(node.func.value, ast.Name):
        return None
    total = node.args[0]
    if not (isinstance(total, ast.BinOp) and isinstance(total.op, ast.Add)):
        return None
    for bypass, branch in ((total.left, total.right), (total.right, total.left)):
        if isinstance(bypass, ast.Name):
            uses = [n for n in every(branch, ast.Name) if n.id == bypass.id]
            if uses:
                return PostNorm(node, bypass, branch, uses)
    return None


WRITERS: dict[str, Writer] = {"pre-norm": turn}
