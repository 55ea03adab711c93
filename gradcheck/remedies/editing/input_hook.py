"""Standardised inputs where the data come from elsewhere: the model does it itself, by a hook, with the measured moments."""

from gradcheck.remedies.editing.context import Context, literal, number
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.helper import apply_to_model, home
from gradcheck.remedies.editing.imports import spelled
from gradcheck.remedies.editing.nodes import Function
from gradcheck.remedies.editing.placing import HELPER
from gradcheck.remedies.editing.statements import insert_definition
from gradcheck.types.fix import Fix

NAME = "standardized"
DIGITS = 4
_WIDTH = 100  # of a line of numbers


def in_front_of_model(p: Fix, context: Context, axis: str) -> None:
    """Raises Unwritable for models that take several inputs, or them by name, and for features that are too many to be written down."""
    facts = context.measurement.data.inputs
    if len(facts) != 1 or facts[0].name not in ("0", "input"):
        raise Unwritable("the data come from outside of your files, and the model takes more than one tensor of them")
    draft = home(context)
    if any(isinstance(n, Function) and n.name == NAME for n in draft.tree.body):
        raise Unwritable("the source has it already")
    moments = _moments(p, context, draft, axis)
    module, tensor = spelled(draft, "torch.nn.Module"), spelled(draft, "torch.Tensor")
    code = f'''
def {NAME}(module: {module}, args: tuple[{tensor}, ...]) -> tuple[{tensor}, ...]:
    """The input less its mean over the training data, divided by its standard deviation."""
    x, *others = args
{moments}    return ((x - mean) / std, *others)
'''
    apply_to_model(context, f"model.register_forward_pre_hook({NAME})", "The model standardises its input.")
    insert_definition(draft, next(n for n in draft.tree.body if isinstance(n, Function) and n.name == HELPER), code)


def _moments(p: Fix, context: Context, draft: Draft, axis: str) -> str:
    """Statements that give `mean` and `std`: numbers, or tensors with one for each feature or channel."""
    facts = context.measurement.data.inputs[0]
    if axis == "all" and "mean" in p.settings:
        return f"    mean, std = {literal(number(p, 'mean'), DIGITS)}, {literal(number(p, 'std'), DIGITS)}\n"
    if not facts.moments:
        raise Unwritable("the data come from outside of your files, and have too many features for their moments to be written down")
    tensor, view = spelled(draft, "torch.tensor"), f".view(-1{', 1' * (len(facts.shape) - 2)})" if axis == "channel" else ""
    values = {"mean": [mean for mean, _ in facts.moments], "std": [std or 1.0 for _, std in facts.moments]}
    return "".join(f"    {name} = {tensor}({_listed(numbers)}, device=x.device){view}\n" for name, numbers in values.items())


def _listed(values: list[float]) -> str:
    """A list, over several lines where it is long."""
    lines, line = [], ""
    for value in values:
        text = f"{literal(value, DIGITS)}, "
        if line and len(line) + len(text) > _WIDTH:
            lines.append(line.rstrip())
            line = ""
        line += text
    lines.append(line.rstrip())
    if len(lines) == 1:
        return f"[{lines[0].rstrip(',')}]"
    return "[\n" + "".join(f"        {x}\n" for x in lines) + "    ]"
