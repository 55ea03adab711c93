from collections.abc import Sequence

from gradcheck.analysis.wording import BY_VALUE, layers_in_words
from gradcheck.rules.graph.disconnected_parameters import count_in_words, owners_of, site_of
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.loop import LoopRemade, LoopThawed
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule


@rule("GRAPH003", up_to="error", needs=("optimizer", "reach"), explains=("LOSS005", "OPT001", "OPT007", "OPT002"))
def parameters_not_in_optimizer(m: Measurement, limits: Limits) -> Verdict:
    """Trainable parameters are in no parameter group of the optimizer, or in two.

    ## What it finds
    Parameters with `requires_grad=True` that get a gradient and that the optimizer does not hold, or holds twice; and
    tensors in the optimizer that are no longer in the model, the trace of a layer that was replaced, or of a model that
    was copied, after the optimizer was built. Weights that a script unfreezes while it trains, and that no optimizer holds.
    Layers that `forward` makes, whose weights are drawn anew in each step.

    ## Why it matters
    A parameter outside the optimizer keeps its initial value. One in two groups is updated twice per step.

    ## How it is measured
    The tensors of the optimizer's groups are compared, by identity, with the model's parameters. In a script a tensor that
    no module holds counts as a parameter when it is an `nn.Parameter`, or when what is computed uses it as a weight (a
    factor of activations, a shift of all rows, a table that is looked up), the losses of four steps send gradient to it and
    its values stay what they were. Frozen weights count when the losses of later steps send gradient to them, four or more, and
    their values stay. A layer is made anew when four steps each have parameters of their own, of one shape with 64 entries or more,
    that correlate by no more than 0.5 and that meet what other weights computed.

    ## Limits and their sources
    None: one parameter counts (a matter of definition). It is a warning when only biases and other vectors are missing, when
    the model was trained before, and when everything before the first optimised layer is missing (a head trained on a
    fixed body; advice when both hold). Stale tensors in the optimizer make it an error always.

    ## When to ignore it
    When the parameters are fixed on purpose. Better: `requires_grad_(False)` on them says so, and saves their gradients.

    ## Example
    ```python
    optimizer = torch.optim.Adam(model.parameters())
    model.head = nn.Linear(512, 10)
    ```

    ## Use instead
    ```python
    model.head = nn.Linear(512, 10)
    optimizer = torch.optim.Adam(model.parameters())
    ```

    ## References
    PyTorch documentation: `torch.optim`, "Constructing it" and "Per-parameter options".
    """
    if not m.optimizer.given:
        return not_applicable("the optimizer was assumed, over all parameters")
    used = [p for p in m.parameters if p.trainable and p.used]
    missing = [p for p in used if p.groups == 0]
    twice = [p for p in used if p.groups > 1]
    findings = [_missing(m, missing)] if missing else []
    if not missing and m.loop is not None and m.loop.thawed is not None:
        findings.append(_thawed(m, m.loop.thawed))
    if m.loop is not None and m.loop.remade is not None:
        findings.append(_remade(m.loop.remade))
    if twice:
        findings.append(_twice(m, twice))
    if m.optimizer.stale and not missing:
        findings.append(_stale(m))
    return findings


def _missing(m: Measurement, missing: Sequence[Parameter]) -> Finding:
    severity, why = _missing_severity(m, missing)
    built = "before the model was changed" if any(p.groups for p in m.parameters) else "for another module, or before the model was changed"
    stale = f"; it holds {m.optimizer.stale} tensors that are not in the model: it was built {built}" if m.optimizer.stale else ""
    owners = owners_of(missing)
    return found(
        severity,
        f"{count_in_words(m, missing)} are {_left_out(m)}, {_which(missing, owners, 'from ')}: they keep their initial values{why}{stale}",
        layers=owners,
        location=_first_made(missing) or m.optimizer.site or site_of(m, owners),
        evidence=Evidence(
            "trainable parameters outside the optimizer", len(missing), 0, ">", f"of {sum(p.trainable for p in m.parameters)}"
        ),
        remedies=_rebuild(m, missing, owners),
        confirmed=BY_VALUE,
    )


def _thawed(m: Measurement, thawed: LoopThawed) -> Finding:
    count, owners = len(thawed.names), list(dict.fromkeys(name.rpartition(".")[0] for name in thawed.names))
    return found(
        "error",
        f"{count} parameters of {layers_in_words(owners)} are unfrozen by step {thawed.step}, but no optimizer holds them (expected: all): "
        "they get gradients, and keep their values",
        layers=owners,
        location=m.optimizer.site,
        evidence=Evidence("unfrozen parameters outside the optimizer", count, 0, ">"),
        remedies=Remedy("add-to-optimizer", "when you unfreeze them, add them: optimizer.add_param_group({'params': ...})", "safe"),
        confirmed=BY_VALUE,
    )


def _remade(remade: LoopRemade) -> Finding:
    shapes = ", ".join(str(list(shape)) for shape in remade.shapes)
    return found(
        "error",
        f"a layer with weights of shape {shapes} is made anew in each step (expected: once): it stays random, no optimizer holds it, and "
        "what stands around it trains for weights that are gone in the next step",
        location=remade.site,
        evidence=Evidence("shapes of weights that are drawn anew", len(remade.shapes), 0, ">"),
        remedies=Remedy("register-modules", "make the layer once, in __init__ of the model, and keep it as an attribute"),
        confirmed=BY_VALUE,
    )


def _first_made(missing: Sequence[Parameter]) -> Location | None:
    return min((p.site for p in missing if p.site is not None), key=lambda s: (s.path, s.line), default=None)


def _which(missing: Sequence[Parameter], owners: Sequence[str], of_layers: str) -> str:
    """The layers that hold them, or, of tensors that no layer holds, their names."""
    return of_layers + layers_in_words(owners) if any(owners) else layers_in_words([p.name for p in missing])


def _is_by_hand(m: Measurement) -> bool:
    return m.loop is not None and m.loop.by_hand


def _left_out(m: Measurement) -> str:
    return "left out of the update" if _is_by_hand(m) else f"in no group of the optimizer {m.optimizer.name}"


def _rebuild(m: Measurement, missing: Sequence[Parameter], owners: Sequence[str]) -> Remedy:
    if not any(p.groups for p in m.parameters):
        return Remedy("add-to-optimizer", "give the optimizer the parameters of the model: it holds none of them", "safe")
    if m.optimizer.stale:
        return Remedy("add-to-optimizer", "build the optimizer after the last change of the model", "safe")
    held = _which(missing, owners, "the parameters of ")
    if _is_by_hand(m):
        text = f"update {held}, too, or freeze them with requires_grad_(False)"
        return Remedy("add-to-optimizer", text)
    return Remedy("add-to-optimizer", f"add {held} to a group of the optimizer, or freeze them with requires_grad_(False)", "safe")


def _missing_severity(m: Measurement, missing: Sequence[Parameter]) -> tuple[Severity, str]:
    """How bad it is, and what speaks for it being meant."""
    if m.optimizer.stale or not any(p.groups for p in m.parameters):
        return "error", ""
    prefix = _is_body_before_trained_head(m, missing)
    if prefix and m.pretrained:
        return "info", ", as when a head is trained on a body that was trained before; freeze the body to say so"
    if prefix:
        return "warning", ": only what comes after them is trained"
    if m.pretrained:
        return "warning", ", those that the model was loaded with"
    if all(len(p.shape) <= 1 for p in missing):
        return "warning", ": biases and other vectors only"
    return "error", ""


def _is_body_before_trained_head(m: Measurement, missing: Sequence[Parameter]) -> bool:
    """All missing parameters belong to layers that run before the first layer with an optimised parameter."""
    order = {x.name: x.order for x in m.layers}
    optimised = [order.get(p.layer) for p in m.parameters if p.trainable and p.used and p.groups > 0]
    left_out = [order.get(p.layer) for p in missing]
    known_optimised = [o for o in optimised if o is not None]
    known_left_out = [o for o in left_out if o is not None]
    if len(known_left_out) < len(left_out) or len(known_optimised) < len(optimised) or not known_optimised:
        return False
    return max(known_left_out) < min(known_optimised)


def _twice(m: Measurement, twice: Sequence[Parameter]) -> Finding:
    owners = owners_of(twice)
    return found(
        "error",
        f"{count_in_words(m, twice)} are in more than one group of the optimizer {m.optimizer.name}, from {layers_in_words(owners)}: "
        "each step updates them once for each group",
        layers=owners,
        location=site_of(m, owners) or m.optimizer.site,
        evidence=Evidence("groups that hold a parameter", max(p.groups for p in twice), 1, ">"),
        remedies=Remedy("add-to-optimizer", "put every parameter into one group", "safe"),
        confirmed=BY_VALUE,
    )


def _stale(m: Measurement) -> Finding:
    return found(
        "info",
        f"the optimizer {m.optimizer.name} holds {m.optimizer.stale} tensors that are not in the model "
        "and get no gradient (limit 0); all of the model's own are in it",
        location=m.optimizer.site,
        evidence=Evidence("tensors in the optimizer that are not in the model", m.optimizer.stale, 0, ">"),
        remedies=Remedy("add-to-optimizer", "build the optimizer after the last change of the model", "safe"),
    )
