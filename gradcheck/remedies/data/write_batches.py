"""Data: where the dataset is put together; where it comes from elsewhere, by a hook of the model."""

import ast
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gradcheck.remedies.data.batches import placeholders
from gradcheck.remedies.editing.context import Context, Writer, in_lines, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Unwritable
from gradcheck.remedies.editing.helper import apply_to_model, home
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import argument, calls_in, defined, definition, dotted, every, names_in, set_argument, statement_of
from gradcheck.remedies.editing.placing import HELPER
from gradcheck.remedies.editing.statements import insert_after, insert_before, insert_definition
from gradcheck.types.fix import Fix

NAME = "standardized"
DIGITS = 4


def in_front_of_model(p: Fix, context: Context, axis: str) -> None:
    """Raises Unwritable for models that take several inputs, or them by name, and for features that are too many to be written down."""
    facts = context.measurement.data.inputs
    if len(facts) != 1 or facts[0].name not in ("0", "input"):
        raise Unwritable("the data come from outside of your files, and the model takes more than one tensor of them")
    draft = home(context)
    if defined(draft, NAME) is not None:
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
    function = defined(draft, HELPER)
    assert function is not None
    insert_definition(draft, function, code)


def _moments(p: Fix, context: Context, draft: Draft, axis: str) -> str:
    """Statements that give `mean` and `std`: numbers, or tensors with one for each feature or channel."""
    facts = context.measurement.data.inputs[0]
    if axis == "all" and "mean" in p.settings:
        return f"    mean, std = {literal(number(p, 'mean'), DIGITS)}, {literal(number(p, 'std'), DIGITS)}\n"
    if not facts.moments:
        raise Unwritable("the data come from outside of your files, and have too many features for their moments to be written down")
    tensor, view = spelled(draft, "torch.tensor"), f".view(-1{', 1' * (len(facts.shape) - 2)})" if axis == "channel" else ""
    values = {"mean": [mean for mean, _ in facts.moments], "std": [std or 1.0 for _, std in facts.moments]}
    return "".join(
        f"    {name} = {tensor}({in_lines([literal(x, DIGITS) for x in numbers], '[]', '    ')}, device=x.device){view}\n"
        for name, numbers in values.items()
    )


def use_input(p: Fix, context: Context) -> None:
    """`self.body(torch.zeros_like(x))` becomes `self.body(x)`, where the model's classes have one such place."""
    found = [(draft, call, x) for draft in context.all_drafts() for call, x in _in_classes(context, draft)]
    if len(found) != 1:
        raise Unwritable(f"{'several places' if found else 'no place'} of the model's code put a tensor like the input in its place")
    draft, call, x = found[0]
    draft.replace(call, x.id)


def _in_classes(context: Context, draft: Draft) -> Iterator[tuple[ast.Call, ast.Name]]:
    """Places in the methods of the classes that the model is made of."""
    types = {layer.type for layer in context.measurement.layers}
    for holder in every(draft.tree, ast.ClassDef):
        for method in holder.body if holder.name in types else ():
            if isinstance(method, ast.FunctionDef):
                yield from placeholders(method).items()


HELD_OUT = ("val", "test", "eval", "dev", "holdout", "held")
_AXES = {"feature": "dim=0", "channel": "dim=(0, 2, 3), keepdim=True", "all": ""}


@dataclass(frozen=True)
class DataSource:
    """Where tensors become data: a TensorDataset, or a list of batches."""

    draft: Draft
    node: ast.expr
    tensors: tuple[str, ...] = ()  # the source of the arguments of a TensorDataset
    batches: str = ""  # the name of a list of (input, target)

    @property
    def held_out(self) -> bool:
        return is_held_out(self.draft, self.node, self.tensors)


def sources(context: Context) -> list[DataSource]:
    """In the order of the files; those of held-out data last."""
    found = []
    for draft in context.all_drafts():
        made = [c for c in calls_in(draft.tree, "TensorDataset") if c.args and not c.keywords]
        found += [DataSource(draft, c, tuple(draft.source(a) for a in c.args)) for c in made]
        for statement in draft.tree.body:
            value = statement.value if isinstance(statement, ast.Assign) else None
            target = statement.targets[0] if isinstance(statement, ast.Assign) else None
            listed = isinstance(value, (ast.List, ast.ListComp)) and isinstance(target, ast.Name) and _pairs(value)
            if listed and value is not None and isinstance(target, ast.Name) and any(x in target.id for x in ("loader", "batches", "data")):
                found.append(DataSource(draft, value, batches=target.id))
    return sorted(found, key=lambda s: s.held_out)


def _pairs(value: ast.List | ast.ListComp) -> bool:
    items = value.elts if isinstance(value, ast.List) else [value.elt]
    return bool(items) and all(isinstance(i, (ast.Tuple, ast.List)) and len(i.elts) == 2 for i in items)


def _put_together(context: Context) -> bool:
    return any(not source.held_out for source in sources(context))


def _training(context: Context) -> DataSource:
    if not _put_together(context):
        raise Unwritable("the data are not put together from tensors in your files")
    return sources(context)[0]


# -------------------------------------------------------------------------------- standardise


def inputs(p: Fix, context: Context) -> None:
    """Mean 0 and standard deviation 1, with the statistics of the training data for held-out data too."""
    axis = word(p, "axis", "feature")
    if "," in word(p, "input"):
        raise Unwritable("there are several inputs")
    constant = any(x.constant_features for x in context.measurement.data.inputs)
    if not _put_together(context):
        in_front_of_model(p, context, axis)
        return
    first = _training(context)
    if first.batches:
        _batches(first, p, axis, constant)
        return
    others = [s for s in sources(context) if s.held_out and s.tensors and s.tensors[0] != first.tensors[0]]
    name, draft = _named(context, 0)
    mean, std = _statistics(name, p, axis, constant)
    if others:
        insert_before(draft, first.node, f"mean, std = {mean}, {std}\n{name} = ({name} - mean) / std")
    else:
        insert_before(draft, first.node, f"{name} = ({name} - {mean}) / {std}")
    for other in others:
        insert_before(other.draft, other.node, f"{other.tensors[0]} = ({other.tensors[0]} - mean) / std")


def _statistics(name: str, p: Fix, axis: str, constant: bool) -> tuple[str, str]:
    if axis == "all" and "mean" in p.settings:
        return literal(number(p, "mean"), 4), literal(number(p, "std"), 4)
    over = _AXES.get(axis)
    if over is None:
        raise Unwritable(f"{axis} is not an axis")
    floor = ".clamp_min(1e-6)" if constant else ""
    return f"{name}.mean({over})", f"{name}.std({over}){floor}"


def _named(context: Context, index: int) -> tuple[str, Draft]:
    """The name of an argument of the training dataset; an expression gets one."""
    source = _training(context)
    if len(source.tensors) <= index:
        raise Unwritable("the dataset has no such tensor")
    node = source.node
    assert isinstance(node, ast.Call)
    given, draft = node.args[index], source.draft
    if isinstance(given, ast.Name):
        return given.id, draft
    text, taken = draft.source(given), names_in(draft.tree)
    name = next(n for n in (("inputs", "x", "standardized") if index == 0 else ("targets", "y", "scaled")) if n not in taken)
    draft.replace(given, name)
    insert_before(draft, node, f"{name} = ({text})" if "\n" in text else f"{name} = {text}")
    return name, draft


def _batches(source: DataSource, p: Fix, axis: str, constant: bool) -> None:
    name = source.batches
    if axis == "all" and "mean" in p.settings:
        mean, std = _statistics("", p, axis, constant)
        insert_after(source.draft, source.node, f"{name} = [((x - {mean}) / {std}, y) for x, y in {name}]")
        return
    cat = spelled(source.draft, "torch.cat")
    mean, std = _statistics("everything", p, axis, constant)
    lines = (
        f"everything = {cat}([x for x, _ in {name}])",
        f"mean, std = {mean}, {std}",
        f"{name} = [((x - mean) / std, y) for x, y in {name}]",
    )
    insert_after(source.draft, source.node, "\n".join(lines))


def targets(p: Fix, context: Context) -> None:
    mean, std = literal(number(p, "mean"), 4), literal(number(p, "std"), 4)
    shift = f" - {mean}" if not mean.startswith("-") else f" + {mean[1:]}"
    source = _training(context)
    back = f"  # a prediction is output * {std} + {mean}"
    if source.batches:
        insert_after(source.draft, source.node, f"{source.batches} = [(x, (y{shift}) / {std}) for x, y in {source.batches}]{back}")
        return
    name, draft = _named(context, 1)
    insert_before(draft, source.node, f"{name} = ({name}{shift}) / {std}{back}")
    others = [s for s in sources(context) if s.held_out and len(s.tensors) > 1 and s.tensors[1] != name]
    for other in others[:1]:
        insert_before(other.draft, other.node, f"{other.tensors[1]} = ({other.tensors[1]}{shift}) / {std}")


# --------------------------------------------------------------------------- order and content


def shuffle(p: Fix, context: Context) -> None:
    """shuffle=True for the loader of the training data."""
    draft, loader = training_loader(context)
    if argument(loader, "sampler") is not None or argument(loader, "batch_sampler") is not None:
        raise draft.refusal(loader, "the loader has a sampler of its own")
    set_argument(draft, loader, "shuffle", "True", 2)


def larger_batch(p: Fix, context: Context) -> None:
    """The loader's batch size, times as many."""
    for draft, loader in training_loaders(context):
        given = argument(loader, "batch_size", 1)
        value = definition(draft, given) or given if given is not None else None
        if isinstance(value, ast.Constant) and isinstance(value.value, int):
            draft.replace(value, str(value.value * round(number(p, "batches"))))
            return
    raise Unwritable("no DataLoader in your files has its batch size as a number")


def training_loaders(context: Context) -> Iterator[tuple[Draft, ast.Call]]:
    return ((draft, call) for draft, call in context.calls("DataLoader") if not is_held_out(draft, call))


def training_loader(context: Context) -> tuple[Draft, ast.Call]:
    """The first one. Raises Unwritable without any."""
    found = next(training_loaders(context), None)
    if found is None:
        raise Unwritable("there is no DataLoader in your files")
    return found


def is_held_out(draft: Draft, node: ast.AST, others: Sequence[str] = ()) -> bool:
    """The name that is given in a statement, or one of the others, says that it is not for training."""
    statement = statement_of(draft, node)
    names = [*map(dotted, statement.targets if isinstance(statement, ast.Assign) else []), *others]
    return any(word in name.lower() for name in names for word in HELD_OUT)


def clean(p: Fix, context: Context) -> None:
    """Leaves out samples with entries that are not finite."""
    source = _training(context)
    if len(source.tensors) < 2:
        raise Unwritable("the data are not put together from tensors in your files")
    given, draft = _named(context, 0)
    wanted, draft = _named(context, 1)
    bad_input = any(x.non_finite for x in context.measurement.data.inputs)
    flat = f"{given}.isfinite().flatten(1)" if bad_input else f"{wanted}.isfinite().reshape(len({wanted}), -1)"
    line = f"finite = {flat}.all(dim=1)  # samples without NaN or infinity"
    insert_before(draft, source.node, f"{line}\n{given}, {wanted} = {given}[finite], {wanted}[finite]")


WRITERS: dict[str, Writer] = {
    "standardize-input": inputs,
    "standardize-target": targets,
    "shuffle-data": shuffle,
    "clean-data": clean,
    "larger-batch": larger_batch,
    "use-input": use_input,
}
