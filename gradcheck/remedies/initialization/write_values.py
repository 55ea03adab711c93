"""Initial values of single layers: weights scaled, branches and biases started where they should, gates opened."""

import ast
import re
from collections.abc import Sequence

from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.helper import apply_to_model, home
from gradcheck.remedies.editing.names import Reader, spelled
from gradcheck.remedies.editing.nodes import every, is_literal
from gradcheck.remedies.initialization.write_weights import drawing, expression, over_layers
from gradcheck.types.fix import Fix


def scaled(p: Fix, context: Context) -> None:
    """Multiplies the weights that layers start with."""
    factor = number(p, "factor") if "factor" in p.settings else number(p, "scale")
    draft = home(context)
    names = [context.layer(x).name for x in p.layers]
    if not names:
        raise Unwritable("no layer is named")
    loop, owner, indent = over_layers(context, draft, names)
    body = [f"{owner}.weight.mul_({literal(factor)})"] if abs(factor - 1) > 0.005 else []
    if p.settings.get("zero_bias") and any(f"{x}.bias" in context.layer(x).parameters for x in names):
        body.append(f"{owner}.bias.zero_()")
    if not body:
        raise Unwritable("the weights have that size already")
    _without_gradient(context, [*loop, *(indent + line for line in body)], p.text)


QUERIES_AND_KEYS = re.compile(r"(q|k|w_?q|w_?k|to_q|to_k|query|key|queries|keys)(_proj|_lin)?|(q|k)_proj_weight|linear_[qk]")
FUSED = re.compile(r"qkv|c_attn|in_proj|to_qkv|qkv_proj|w_?qkv|query_key_value|proj_qkv|in_proj_(weight|bias)")


def smaller(p: Fix, context: Context) -> None:
    """Multiplies weights and biases of what makes queries and keys: separate layers, or two thirds of a fused one."""
    factor = literal(number(p, "factor"))
    lines = []
    for owner in p.layers:
        start = f"{owner}." if owner else ""
        for x in context.measurement.parameters:
            parts = x.name.removeprefix(start).split(".") if x.name.startswith(start) else []
            name = next((part for part in parts if part not in ("weight", "bias")), "")
            holder, _, last = x.name.rpartition(".")
            text = f"{expression(context, holder)}.{last}"
            if QUERIES_AND_KEYS.fullmatch(name.lower()):
                lines.append(f"{text}.mul_({factor})")
            elif FUSED.fullmatch(name.lower()):
                conv1d = x.layer and context.layer(x.layer).type == "Conv1D" and len(x.shape) == 2
                width = x.shape[1 if conv1d else 0] // 3 * 2
                lines.append(f"{text}[{':, ' if conv1d else ''}:{width}].mul_({factor})  # queries and keys")
    if not lines:
        raise Unwritable("what makes queries and keys has no customary name")
    _without_gradient(context, lines, p.text)


def zeroed(p: Fix, context: Context) -> None:
    """Branches that start at zero."""
    draft = home(context)
    names = [context.layer(x).name for x in p.layers]
    loop, owner, indent = over_layers(context, draft, names)
    zeros = spelled(draft, "torch.nn.init.zeros_")
    lines = [*loop, f"{indent}{zeros}({owner}.weight)"]
    if any(f"{x}.bias" in context.layer(x).parameters for x in names):
        lines.append(f"{indent}{zeros}({owner}.bias)")
    apply_to_model(context, "\n".join(lines), p.text)


def prior(p: Fix, context: Context) -> None:
    """The output's bias starts at what the targets are on average: in the statement that sets it today, if there is one."""
    values = [float(x) for x in word(p, "bias").split(",") if x.strip()]
    if not values or len(p.layers) != 1:
        raise Unwritable("the bias is not known")
    name = p.layers[0]
    for draft in context.all_drafts():
        found = next(((s, o) for s, o, covered in drawing(context, draft, "bias") if covered == frozenset({name})), None)
        if found is not None and any(isinstance(a, ast.With) for a in draft.ancestors(found[0])):
            draft.replace(found[0], _filled(draft, found[1], values))
            return
    draft = home(context)
    _without_gradient(context, [_filled(draft, expression(context, name), values)], p.text)


def _filled(draft: Draft, owner: str, values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{owner}.bias.fill_({literal(values[0], 4)})"
    return f"{owner}.bias.copy_({spelled(draft, 'torch.tensor')}([{', '.join(literal(v, 4) for v in values)}]))"


def forget_gate(p: Fix, context: Context) -> None:
    """Forget gates that start open: bias_ih at the value, bias_hh at 0. PyTorch's gates are in the order input, forget, cell, output."""
    value = literal(number(p, "value", 1.0))
    if not _gate_in_place(p, context, value):
        _require_lstm(p, context)
        open_forget_gates(context, p.layers, value, p.text)


def open_forget_gates(context: Context, layers: Sequence[str], value: str, doc: str) -> None:
    """The same for layers that are LSTMs in the source by now, whatever they were when they were measured."""
    line = f'bias[hidden : 2 * hidden] = {value} if name.startswith("bias_ih") else 0.0  # the forget gate'
    _gates(context, layers, [line], doc)


def _gate_in_place(p: Fix, context: Context, value: str) -> bool:
    """A statement that sets a slice of the only layer's input bias to a number gets the new number."""
    for draft in context.all_drafts():
        reader = Reader(context, draft)
        for node in every(draft.tree, ast.Assign):
            target = node.targets[0]
            held = target.value if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Slice) else None
            biased = (
                isinstance(held, ast.Attribute) and held.attr.startswith("bias_ih") and reader.layers(held.value) == frozenset(p.layers)
            )
            if biased and is_literal(node.value):
                draft.replace(node.value, value)
                return True
    return False


def chrono(p: Fix, context: Context) -> None:
    """Forget biases log(uniform(1, T - 1)), input biases their negative (Tallec and Ollivier 2018)."""
    longest = max(2, round(number(p, "steps")) - 1)
    body = [
        "bias.zero_()",
        'if name.startswith("bias_ih"):',
        f"    bias[hidden : 2 * hidden].uniform_(1, {longest}).log_()  # the forget gate",
        "    bias[:hidden] = -bias[hidden : 2 * hidden]  # the input gate",
    ]
    _require_lstm(p, context)
    _gates(context, p.layers, body, p.text)


def orthogonal_recurrent(p: Fix, context: Context) -> None:
    """One orthogonal matrix for each gate of the recurrent weights."""
    draft = home(context)
    init = spelled(draft, "torch.nn.init.orthogonal_")
    lines = []
    for name in p.layers:
        owner = expression(context, name)
        lines += [
            f"for name, weight in {owner}.named_parameters():",
            '    if name.startswith("weight_hh"):',
            f"        for gate in weight.split({owner}.hidden_size):",
            f"            {init}(gate)",
        ]
    _without_gradient(context, lines, p.text)


def _require_lstm(p: Fix, context: Context) -> None:
    for layer in p.layers:
        if not context.layer(layer).type.startswith("LSTM"):
            raise Unwritable(f"{layer} is no LSTM of torch")


def _gates(context: Context, layers: Sequence[str], body: list[str], doc: str) -> None:
    """Statements about each bias of recurrent layers."""
    lines: list[str] = []
    for layer in layers:
        owner = expression(context, layer)
        lines += [f"hidden = {owner}.hidden_size", f"for name, bias in {owner}.named_parameters():", '    if name.startswith("bias_"):']
        lines += [f"        {line}" for line in body]
    if not lines:
        raise Unwritable("no layer is named")
    _without_gradient(context, lines, doc)


def _without_gradient(context: Context, lines: Sequence[str], doc: str) -> None:
    draft = home(context)
    head = f"with {spelled(draft, 'torch.no_grad')}():"
    apply_to_model(context, "\n".join([head, *(f"    {line}" for line in lines)]), doc[:1].upper() + doc[1:].rstrip(".") + ".")


WRITERS: dict[str, Writer] = {
    "residual-scaling": scaled,
    "head-scaling": scaled,
    "smaller-query-key-init": smaller,
    "zero-branch-init": zeroed,
    "prior-bias": prior,
    "forget-bias": forget_gate,
    "chrono-init": chrono,
    "orthogonal-recurrent": orthogonal_recurrent,
}
