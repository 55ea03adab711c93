from collections.abc import Iterable, Sequence

from gradcheck.analysis.wording import BY_VALUE, layers_in_words, percent
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.location import Location
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Cut, Parameter
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, rule

# How each cutting operation is written in a program.
OPERATIONS = {
    "detach": "detach()",
    "no_grad": "torch.no_grad()",
    "data": ".data",
    "numpy": ".numpy()",
    "item": ".item()",
    "argmax": "argmax",
    "round": "round",
    "bool": "a comparison",
    "int-cast": "a cast to integers",
}
REMADE = ("detach", "data", "numpy", "item")  # cuts that keep the values: a loop goes on with them, or makes a new tensor of them
IDLE = {"unused-output": "computed but not used in the loss", "not-called": "never called"}


@rule("GRAPH001", up_to="error", needs=("reach",), explains=("GRAD004", "GRAD001", "LOSS005", "OPT001", "OPT007", "OPT002"))
def disconnected_parameters(m: Measurement, limits: Limits) -> Verdict:
    """Parameters that the optimizer should train get no gradient.

    ## What it finds
    Places where the gradient is cut: `detach()`, `torch.no_grad()`, `.data`, a way through NumPy or `.item()`, `argmax`,
    rounding, a comparison, a cast to integers. It names the first module whose output is cut and the parameters behind
    it. Modules that are never called, or whose output the loss does not use, are listed as one piece of advice.

    ## Why it matters
    Without a gradient a parameter keeps its initial value for the whole training, and nothing says so: the layers after
    the cut still learn, and the loss still falls.

    ## How it is measured
    The autograd graph of the loss is walked over all batches of the scan; a parameter that no batch reaches is
    disconnected. The cut is where an output no longer requires a gradient although parameters before it do; of several
    cuts, one whose result goes on to the loss. An optimizer of a script that no loss reaches is judged by the loss whose
    backward pass ran right before its steps.

    ## Limits and their sources
    None: one disconnected parameter that is trainable and in the optimizer counts (calibration E2: in 58
    healthy architectures there is none after three steps). It is a warning when the weights were trained before (a fixed
    feature extractor), and advice when an installed package cuts, or when the cut parameters are a copy of trained ones
    (a momentum teacher). It is always an error when no trainable parameter gets a gradient.

    ## When to ignore it
    When the part before the cut is fixed on purpose. Better: set `requires_grad_(False)` on it and leave it out of the
    optimizer, and the rule is silent.

    ## Example
    ```python
    features = self.encoder(x).detach()
    return self.head(features)
    ```

    ## Use instead
    ```python
    return self.head(self.encoder(x))
    ```

    ## References
    PyTorch documentation, "Autograd mechanics": locally disabling gradient computation.
    """
    trainable = [p for p in m.parameters if p.trainable]
    if not trainable:
        return not_applicable("no trainable parameters")
    by_name = {name: p for p in m.parameters for name in (p.name, *p.aliases)}
    cut_names = {name for c in m.cuts for name in c.parameters}
    severed = [p for p in trainable if not p.used or p.name in cut_names]
    if len(severed) == len(trainable):
        return [_all_disconnected(m, trainable)]
    findings = []
    for cuts in _by_place(c for c in m.cuts if c.operation not in IDLE):
        parameters = _trained_ones(m, (by_name[n] for c in cuts for n in c.parameters if n in by_name))
        if parameters:
            findings.append(_cut(m, cuts, parameters))
    idle = _trained_ones(m, (by_name[n] for c in m.cuts if c.operation in IDLE for n in c.parameters if n in by_name))
    lost = _trained_ones(m, (p for p in severed if p.name not in cut_names and not any(a in cut_names for a in p.aliases)))
    return findings + ([_idle(m, [*idle, *lost])] if idle or lost else [])


def _trained_ones(m: Measurement, parameters: Iterable[Parameter]) -> list[Parameter]:
    """Those that the optimizer should train, each once."""
    kept = (p for p in parameters if p.trainable and (p.groups > 0 or not m.optimizer.given))
    return list({p.name: p for p in kept}.values())


def _by_place(cuts: Iterable[Cut]) -> list[list[Cut]]:
    places: dict[object, list[Cut]] = {}
    for cut in cuts:
        places.setdefault((cut.operation, cut.site or cut.layer), []).append(cut)
    return list(places.values())


def _cut(m: Measurement, cuts: Sequence[Cut], parameters: Sequence[Parameter]) -> Finding:
    cut = cuts[0]
    operation = OPERATIONS.get(cut.operation, cut.operation)
    place = f"behind {layers_in_words([c.layer for c in cuts])}" if any(c.layer for c in cuts) else "in the model"
    head = f"the gradient is cut by {operation} {place}: {count_in_words(m, parameters)} get no gradient"
    severity: Severity
    if all(c.in_package for c in cuts):
        severity, meaning = "info", "an installed package does so by its design; they keep their initial values"
    elif _is_momentum_copy(m, parameters):
        severity, meaning = "info", "they are a copy of trained ones, as a momentum teacher is; freeze them with requires_grad_(False)"
    elif m.pretrained:
        severity, meaning = "warning", "they keep the values that they were loaded with, although the optimizer holds them"
    else:
        severity, meaning = "error", "they keep their initial values while the rest trains"
    return found(
        severity,
        f"{head}: {meaning}",
        layers=owners_of(parameters) or [cut.layer],
        location=next((c.site for c in cuts if c.site), None) or site_of(m, [cut.layer]),
        evidence=_share(m, parameters),
        remedies=Remedy(
            "remove-detach", f"remove {operation}, or freeze what lies before it with requires_grad_(False) if that is meant", "unsafe"
        ),
        confirmed=BY_VALUE,
    )


def _idle(m: Measurement, parameters: Sequence[Parameter]) -> Finding:
    reasons = {name: IDLE[c.operation] for c in m.cuts if c.operation in IDLE for name in c.parameters}
    why = " or ".join(sorted({reasons.get(p.name, "not reached by the gradient of the loss") for p in parameters}))
    owners = owners_of(parameters)
    return found(
        "info",
        f"{layers_in_words(owners)}: {why} in this scan; {count_in_words(m, parameters)} get no gradient and keep their initial values",
        layers=owners,
        location=site_of(m, owners),
        evidence=_share(m, parameters),
        remedies=Remedy("remove-unused-modules", "remove them, call them, or freeze them with requires_grad_(False)"),
    )


def _all_disconnected(m: Measurement, trainable: Sequence[Parameter]) -> Finding:
    cut = next((c for c in m.cuts if c.operation not in IDLE), None) or next(iter(m.cuts), None)
    by = ""
    if cut is not None and cut.operation in IDLE:
        by = f": {layers_in_words([cut.layer])} is {IDLE[cut.operation]}"
    elif cut is not None:
        by = f": {OPERATIONS.get(cut.operation, cut.operation)} cuts it behind {layers_in_words([cut.layer])}"
    return found(
        "error",
        f"the loss sends no gradient to any of the {len(trainable)} trainable parameters{by}; the model cannot learn",
        layers=owners_of(trainable)[:20],
        location=cut.site if cut else None,
        evidence=_share(m, trainable),
        remedies=_all_cut(m, cut),
        confirmed=BY_VALUE,
    )


def _all_cut(m: Measurement, cut: Cut | None) -> tuple[Remedy, ...]:
    general = Remedy("remove-detach", "compute the loss from the model's output by differentiable operations only")
    if m.loop is None or cut is None or cut.operation not in REMADE:
        return (general,)
    text = f"remove {OPERATIONS[cut.operation]} from the loop: a tensor made again from its values has no gradient to the model"
    return Remedy("keep-tensor", text, "safe"), general


def _is_momentum_copy(m: Measurement, parameters: Sequence[Parameter]) -> bool:
    """Each parameter has a trained twin of equal shape and start, whose name differs in one part that is not an index."""
    trained = [p for p in m.parameters if p.trainable and p.used]

    def twin(p: Parameter) -> bool:
        return any(
            q.shape == p.shape and q.mean == p.mean and q.std == p.std and _names_differ_in_one_word(p.name, q.name) for q in trained
        )

    return any(p.std > 0 for p in parameters) and all(map(twin, parameters))


def _names_differ_in_one_word(a: str, b: str) -> bool:
    left, right = a.split("."), b.split(".")
    different = [(x, y) for x, y in zip(left, right, strict=False) if x != y]
    return len(left) == len(right) and len(different) == 1 and not any(x.isdigit() for x in different[0])


def owners_of(parameters: Iterable[Parameter]) -> list[str]:
    return list(dict.fromkeys(p.layer for p in parameters))


def site_of(m: Measurement, names: Iterable[str]) -> Location | None:
    layers = (m.layer(name) for name in names)
    return next((x.site for x in layers if x is not None and x.site is not None), None)


def count_in_words(m: Measurement, parameters: Sequence[Parameter]) -> str:
    """ "12 of 20 trainable parameters (61 % of the numbers)"."""
    trainable = [p for p in m.parameters if p.trainable]
    numbers = sum(p.count for p in parameters) / max(1, sum(p.count for p in trainable))
    return f"{len(parameters)} of {len(trainable)} trainable parameters ({percent(numbers)} of the numbers)"


def _share(m: Measurement, parameters: Sequence[Parameter]) -> Evidence:
    return Evidence("trainable parameters without gradient", len(parameters), 0, ">", f"of {sum(p.trainable for p in m.parameters)}")
