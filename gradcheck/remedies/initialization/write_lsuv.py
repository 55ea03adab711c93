"""LSUV needs data: a small function in the user's file runs the model on the training inputs, where these have a global name."""

import ast

from gradcheck.remedies.data.write_batches import sources
from gradcheck.remedies.editing.context import Context, Writer
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.helper import apply_to_model, home
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.statements import insert_definition
from gradcheck.types.fix import Fix

NAME = "scale_to_unit_variance"
_WIDTH = 100  # of a line of names


def rescale(p: Fix, context: Context) -> None:
    draft = home(context)
    for name in p.layers:
        if context.layer(name).type in ("LSTM", "GRU", "RNN") or ":" in name:
            raise Unwritable(f"{name} has no single weight that could be divided")
    inputs = _inputs(context, draft)
    _define(context, draft)
    names = _listed([f'"{x}"' for x in p.layers])
    apply_to_model(context, f"{NAME}(model, {inputs}, {names})", "Layer-sequential unit variance (LSUV, Mishkin and Matas 2016).")


def _inputs(context: Context, draft: Draft) -> str:
    """An expression for a batch of inputs, out of global names that are there when the model is made."""
    if len(context.measurement.data.inputs) != 1 or {x.dtype for x in context.measurement.parameters} - {"float32"}:
        raise Unwritable("the model takes several inputs, or others than float32")
    made = context.at(context.root)[1].lineno
    for source in sources(context):
        if source.draft is not draft or source.held_out or source.node.lineno > made:
            continue
        if source.batches:
            return f"{source.batches}[0][0]"
        if source.tensors and source.tensors[0] in _globals(draft):
            return f"{source.tensors[0]}[:{context.measurement.data.batch_size}]"
    raise Unwritable("the inputs have no global name in the file that makes the model")


def _globals(draft: Draft) -> set[str]:
    names = (n for statement in draft.tree.body if isinstance(statement, ast.Assign) for t in statement.targets for n in ast.walk(t))
    return {n.id for n in names if isinstance(n, ast.Name)}


def _listed(names: list[str]) -> str:
    """A tuple, over several lines where it is long."""
    lines, line = [], ""
    for name in names:
        if line and len(line) + len(name) > _WIDTH:
            lines.append(line)
            line = ""
        line += f"{name}, "
    lines.append(line)
    if len(lines) == 1:
        return f"({line.strip()})" if len(names) == 1 else f"({line.strip().rstrip(',')})"
    return "(\n" + "".join(f"    {x.rstrip()}\n" for x in lines) + ")"


def _define(context: Context, draft: Draft) -> None:
    if any(isinstance(n, ast.FunctionDef) and n.name == NAME for n in draft.tree.body):
        return
    module, tensor, no_grad = (spelled(draft, f"torch.{x}") for x in ("nn.Module", "Tensor", "no_grad"))
    code = f'''
@{no_grad}()
def {NAME}(model: {module}, inputs: {tensor}, names: tuple[str, ...]) -> None:
    """Divides weights, in forward order, by the standard deviation of what they give, and zeroes the biases."""
    outputs: list[{tensor}] = []
    for layer in map(model.get_submodule, names):
        if layer.bias is not None:
            layer.bias.zero_()
    for layer in map(model.get_submodule, names):
        hook = layer.register_forward_hook(lambda module, args, output: outputs.append(output))
        for _ in range(10):
            outputs.clear()
            model(inputs)
            deviation = outputs[0].std()
            if deviation == 0 or abs(deviation - 1) < 0.05:
                break
            layer.weight.div_(deviation)
        hook.remove()
'''
    insert_definition(draft, context.at(context.root)[1], code)


WRITERS: dict[str, Writer] = {"lsuv-init": rescale}
