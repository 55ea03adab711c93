"""GRAPH: the computation is not what was meant."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from gradcheck.judge.protocol import Limit, Limits, Verdict, found, not_applicable, rule
from gradcheck.nouns.verdict import Evidence, Finding, Remedy, Severity
from gradcheck.rules.words import BY_VALUE, layers_in_words, number, percent

if TYPE_CHECKING:
    from gradcheck.nouns.measurement import Cut, HiddenTensor, LossCall, Measurement, Parameter
    from gradcheck.nouns.places import Location

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
REMADE = ("detach", "data", "numpy", "item")  # cuts that leave the numbers: a loop makes a new tensor of them, or goes on with them
IDLE = {"unused-output": "computed but not used in the loss", "not-called": "never called"}
# Losses that are never negative, so that a program that lowers minus one of them is lowering something without a bound.
NON_NEGATIVE_LOSSES = frozenset(
    (
        "cross_entropy",
        "nll_loss",
        "binary_cross_entropy",
        "binary_cross_entropy_with_logits",
        "mse_loss",
        "l1_loss",
        "smooth_l1_loss",
        "huber_loss",
        "multi_margin_loss",
        "multilabel_margin_loss",
        "multilabel_soft_margin_loss",
        "soft_margin_loss",
        "hinge_embedding_loss",
        "triplet_margin_loss",
        "margin_ranking_loss",
        "ctc_loss",
    )
)
DENSITY_LOSSES = frozenset(("gaussian_nll_loss", "poisson_nll_loss"))  # negative where the density exceeds 1: no fault


@rule(
    "GRAPH001",
    "disconnected-parameters",
    up_to="error",
    needs=("graph", "parameters"),
    explains=("GRAD004", "GRAD001", "LOSS005", "OPT001", "OPT002"),
)
def disconnected_parameters(m: Measurement, limits: Limits) -> Verdict:
    """Parameters that the optimizer is to train get no gradient.

    ## What it finds
    Places where the gradient is cut: `detach()`, `torch.no_grad()`, `.data`, a way through NumPy or `.item()`, `argmax`,
    rounding, a comparison, a cast to integers. It names the first module whose output is cut and the parameters behind
    it. Modules that are never called, or whose output the loss does not use, are listed as one piece of advice.

    ## Why it matters
    Without a gradient a parameter keeps its initial value for the whole training, and nothing says so: the layers after
    the cut still learn, and the loss still falls.

    ## How it is measured
    The autograd graph of the loss is walked over all batches of the scan; a parameter that no batch reaches is
    disconnected. The cut is where an output no longer requires a gradient although parameters before it do.

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
    """Those that the optimizer is to train, each once."""
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
    head = f"the gradient is cut by {operation} {place}: {_count(m, parameters)} get no gradient"
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
        layers=_owners(parameters) or [cut.layer],
        location=next((c.site for c in cuts if c.site), None) or _site(m, [cut.layer]),
        evidence=(_share(m, parameters),),
        remedies=(
            Remedy(
                "remove-detach", f"remove {operation}, or freeze what lies before it with requires_grad_(False) if that is meant", "unsafe"
            ),
        ),
        confirmed=BY_VALUE if severity == "error" else "",
    )


def _idle(m: Measurement, parameters: Sequence[Parameter]) -> Finding:
    reasons = {name: IDLE[c.operation] for c in m.cuts if c.operation in IDLE for name in c.parameters}
    why = " or ".join(sorted({reasons.get(p.name, "not reached by the gradient of the loss") for p in parameters}))
    owners = _owners(parameters)
    return found(
        "info",
        f"{layers_in_words(owners)}: {why} in this scan; {_count(m, parameters)} get no gradient and keep their initial values",
        layers=owners,
        location=_site(m, owners),
        evidence=(_share(m, parameters),),
        remedies=(Remedy("remove-unused-modules", "remove them, call them, or freeze them with requires_grad_(False)"),),
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
        layers=_owners(trainable)[:20],
        location=cut.site if cut else None,
        evidence=(_share(m, trainable),),
        remedies=_all_cut(m, cut),
        confirmed=BY_VALUE,
    )


def _all_cut(m: Measurement, cut: Cut | None) -> tuple[Remedy, ...]:
    general = Remedy("remove-detach", "compute the loss from the model's output by differentiable operations only")
    if m.loop is None or cut is None or cut.operation not in REMADE:
        return (general,)
    text = f"take {OPERATIONS[cut.operation]} away in the loop: what is made anew from the numbers has no gradient to the model"
    return Remedy("keep-tensor", text, "safe"), general


def _is_momentum_copy(m: Measurement, parameters: Sequence[Parameter]) -> bool:
    """Each parameter has a trained twin of equal shape and start, whose name differs in one part that is no index."""
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


def _owners(parameters: Iterable[Parameter]) -> list[str]:
    return list(dict.fromkeys(p.layer for p in parameters))


def _site(m: Measurement, names: Iterable[str]) -> Location | None:
    layers = (m.layer(name) for name in names)
    return next((x.site for x in layers if x is not None and x.site is not None), None)


def _count(m: Measurement, parameters: Sequence[Parameter]) -> str:
    """ "12 of 20 trainable parameters (61 % of the numbers)"."""
    trainable = [p for p in m.parameters if p.trainable]
    numbers = sum(p.count for p in parameters) / max(1, sum(p.count for p in trainable))
    return f"{len(parameters)} of {len(trainable)} trainable parameters ({percent(numbers)} of the numbers)"


def _share(m: Measurement, parameters: Sequence[Parameter]) -> Evidence:
    return Evidence("trainable parameters without gradient", len(parameters), 0, ">", f"of {sum(p.trainable for p in m.parameters)}")


@rule("GRAPH002", "unregistered-modules", up_to="error", needs=("graph",), explains=("GRAPH001", "GRAPH003", "LOSS005", "OPT001", "OPT002"))
def unregistered_modules(m: Measurement, limits: Limits) -> Verdict:
    """Modules or parameters are held where `parameters()` does not see them.

    ## What it finds
    Trainable tensors that the loss depends on and that `model.parameters()` does not list: modules in a plain list, dict
    or tuple, in a closure or a global, and tensors that are no `nn.Parameter`.

    ## Why it matters
    An optimizer built from `model.parameters()` never updates them, `.to(device)` does not move them, `state_dict()` does
    not save them, and `train()` and `eval()` do not reach them.

    ## How it is measured
    The leaves of the loss's autograd graph are compared with `model.parameters()`; the rest is looked for in the
    attributes of the model's modules.

    ## Limits and their sources
    None: one such tensor counts. It is a warning when the optimizer was given it by hand (it then trains, but is not
    saved or moved), and when it cannot be said where the tensor is held. Both together are silent: a loss function with
    parameters of its own.

    ## When to ignore it
    When the tensors are trained and saved elsewhere on purpose.

    ## Example
    ```python
    self.blocks = [nn.Linear(64, 64) for _ in range(4)]
    ```

    ## Use instead
    ```python
    self.blocks = nn.ModuleList(nn.Linear(64, 64) for _ in range(4))
    ```

    ## References
    PyTorch documentation: `torch.nn.ModuleList`, `torch.nn.ParameterList`.
    """
    places: dict[object, list[HiddenTensor]] = {}
    for tensor in m.hidden:
        if tensor.in_optimizer and not tensor.name:
            continue  # held outside the model, and trained: a loss with parameters of its own
        places.setdefault((tensor.site or tensor.name.partition("[")[0], tensor.in_optimizer), []).append(tensor)
    return [_hidden(tensors) for tensors in places.values()]


def _hidden(tensors: Sequence[HiddenTensor]) -> Finding:
    first = tensors[0]
    count = sum(math.prod(t.shape) for t in tensors)
    holders = layers_in_words(_holders(tensors)) if first.name else "tensors that no attribute of the model leads to"
    severity: Severity = "warning" if first.in_optimizer or not (first.name or first.site) else "error"
    never = "they are in the optimizer, but" if first.in_optimizer else "an optimizer over parameters() never trains them, and"
    return found(
        severity,
        f"{holders} ({', '.join(sorted({t.owner for t in tensors}))}): {len(tensors)} trainable tensors ({number(count)} numbers; "
        f"limit 0) are missing from parameters(): {never} to() and state_dict() leave them out",
        layers=tuple(dict.fromkeys(t.name for t in tensors if t.name)),
        location=first.site,
        evidence=(Evidence("trainable tensors outside parameters()", len(tensors), 0, ">"),),
        remedies=(_registration(first),),
        confirmed=BY_VALUE if severity == "error" else "",
    )


def _registration(tensor: HiddenTensor) -> Remedy:
    kind = "Parameter" if tensor.owner in ("Parameter", "Tensor") else "Module"
    keyed = tensor.name.partition("[")[2].startswith(("'", '"'))
    container = f"nn.{kind}{'Dict' if keyed else 'List'}"
    held = "hold them in an" if "[" in tensor.name else "assign them as an attribute of the model, or hold them in an"
    return Remedy("register-modules", f"{held} {container}, so that parameters() lists them", "unsafe")


def _holders(tensors: Sequence[HiddenTensor]) -> list[str]:
    """The hidden modules, or the tensors where none holds them, in natural order; "self.a[2]" as "self.a.2"."""
    names = {t.name if t.owner in ("Parameter", "Tensor") else t.name.rpartition(".")[0] for t in tensors if t.name}
    dotted = {re.sub(r"\[(\d+)\]", r".\1", name) for name in names}
    return sorted(dotted, key=lambda name: [int(x) if x.isdigit() else -1 for x in name.split(".")])


@rule("GRAPH003", "parameters-not-in-optimizer", up_to="error", needs=("graph", "parameters"), explains=("LOSS005", "OPT001", "OPT002"))
def parameters_not_in_optimizer(m: Measurement, limits: Limits) -> Verdict:
    """Trainable parameters are in no parameter group of the optimizer, or in two.

    ## What it finds
    Parameters with `requires_grad=True` that get a gradient and that the optimizer does not hold, or holds twice; and
    tensors in the optimizer that are no longer in the model, the trace of a layer that was replaced, or of a model that
    was copied, after the optimizer was built.

    ## Why it matters
    A parameter outside the optimizer keeps its initial value. One in two groups is updated twice per step.

    ## How it is measured
    The tensors of the optimizer's groups are compared, by identity, with the model's parameters.

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
    if twice:
        findings.append(_twice(m, twice))
    if m.optimizer.stale and not missing:
        findings.append(_stale(m))
    return findings


def _missing(m: Measurement, missing: Sequence[Parameter]) -> Finding:
    severity, why = _missing_severity(m, missing)
    built = "before the model was changed" if any(p.groups for p in m.parameters) else "for another module, or before the model was changed"
    stale = f"; it holds {m.optimizer.stale} tensors that are not in the model: it was built {built}" if m.optimizer.stale else ""
    owners = _owners(missing)
    return found(
        severity,
        f"{_count(m, missing)} are in no group of the optimizer {m.optimizer.name}, from {layers_in_words(owners)}: "
        f"they keep their initial values{why}{stale}",
        layers=owners,
        location=_site(m, owners) or m.optimizer.site,
        evidence=(
            Evidence("trainable parameters outside the optimizer", len(missing), 0, ">", f"of {sum(p.trainable for p in m.parameters)}"),
        ),
        remedies=(_rebuild(m, owners),),
        confirmed=BY_VALUE if severity == "error" else "",
    )


def _rebuild(m: Measurement, owners: Sequence[str]) -> Remedy:
    if not any(p.groups for p in m.parameters):
        return Remedy("add-to-optimizer", "give the optimizer the parameters of the model: it holds none of them", "safe")
    if m.optimizer.stale:
        return Remedy("add-to-optimizer", "build the optimizer after the last change of the model", "safe")
    return Remedy(
        "add-to-optimizer",
        f"add the parameters of {layers_in_words(owners)} to a group of the optimizer, or freeze them with requires_grad_(False)",
        "safe",
    )


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
    owners = _owners(twice)
    return found(
        "error",
        f"{_count(m, twice)} are in more than one group of the optimizer {m.optimizer.name}, from {layers_in_words(owners)}: "
        "each step updates them once per group",
        layers=owners,
        location=_site(m, owners) or m.optimizer.site,
        evidence=(Evidence("groups that hold a parameter", max(p.groups for p in twice), 1, ">"),),
        remedies=(Remedy("add-to-optimizer", "put every parameter into one group", "safe"),),
        confirmed=BY_VALUE,
    )


def _stale(m: Measurement) -> Finding:
    return found(
        "info",
        f"the optimizer {m.optimizer.name} holds {m.optimizer.stale} tensors that are not in the model "
        "and get no gradient (limit 0); all of the model's own are in it",
        location=m.optimizer.site,
        evidence=(Evidence("tensors in the optimizer that are not in the model", m.optimizer.stale, 0, ">"),),
        remedies=(Remedy("add-to-optimizer", "build the optimizer after the last change of the model", "safe"),),
    )


@rule(
    "GRAPH004",
    "gradient-ascent",
    up_to="error",
    needs=("probe", "losses"),
    limits={
        "cosine": Limit(-0.05, "cosine", "a first step along the negative gradient has a cosine of 1 (SGD) or mean|g| / rms(g) > 0 (Adam)"),
        "decayed_cosine": Limit(
            -0.5, "cosine", "weight decay and coupled terms can turn a first step sideways, but not against the gradient"
        ),
    },
    explains=("OPT001", "OPT002", "LOSS005", "LOSS003", "NUM001", "GRAD002", "ACT002", "ACT001", "GRAD004", "ACT004"),
)
def gradient_ascent(m: Measurement, limits: Limits) -> Verdict:
    """Training raises the loss, or lowers one that has no lower bound.

    ## What it finds
    A flipped sign: an optimizer that climbs (`maximize=True`, a negative rate, a hand-made update with the wrong sign), a
    loss that is never negative but is subtracted, and a total that falls far below zero faster and faster.

    ## Why it matters
    The model is trained to be wrong, and the better the optimizer works the worse it gets.

    ## How it is measured
    The cosine between the optimizer's first update and the negative gradient; d(total loss) / d(each known loss); and the
    probe training, for a loss that runs away below zero.

    ## Limits and their sources
    `cosine` -0.05: a descent step has a positive cosine, 1 for SGD and mean|g| / rms(g) for Adam's first step.
    `decayed_cosine` -0.5: applies instead when the optimizer has weight decay, whose share of a step can point anywhere.

    ## When to ignore it
    When a term is maximised on purpose, as in adversarial training. Beside other losses that is advice only.

    ## Example
    ```python
    loss = -nn.functional.cross_entropy(model(x), y)
    ```

    ## Use instead
    ```python
    loss = nn.functional.cross_entropy(model(x), y)
    ```

    ## References
    PyTorch documentation: `torch.optim.SGD`, argument `maximize`.
    """
    uphill = _uphill_steps(m, limits)
    if uphill is not None:
        return [uphill]
    negated = [c for c in m.losses if c.function in NON_NEGATIVE_LOSSES and (c.weight_in_total or 0.0) < 0]
    if negated and not m.optimizer.maximize:
        return [_negated(m, c) for c in negated]
    unbounded = _unbounded(m)
    return [unbounded] if unbounded is not None else []


def _uphill_steps(m: Measurement, limits: Limits) -> Finding | None:
    """The optimizer itself climbs."""
    if not m.optimizer.given:
        return None
    if m.optimizer.maximize:
        return _maximizing(m)
    if m.ascent is None:
        return None
    limit = limits["cosine"] if m.optimizer.weight_decay == 0 else limits["decayed_cosine"]
    if not m.ascent.cosine < limit:
        return None
    return found(
        "error",
        f"the first step of the optimizer {m.optimizer.name} goes uphill: its cosine with the negative gradient is "
        f"{number(m.ascent.cosine)} (limit {number(limit)}); training raises the loss",
        location=m.optimizer.site,
        evidence=(Evidence("cosine of the first update with the negative gradient", m.ascent.cosine, limit, "<"),),
        remedies=(Remedy("flip-sign", "subtract the gradient: a positive learning rate, and maximize=False", "safe"),),
        confirmed=BY_VALUE,
    )


def _maximizing(m: Measurement) -> Finding | None:
    """`maximize=True` is right for an objective, wrong for a loss; which one it is shows only for known losses."""
    known = [c for c in m.losses if c.function in NON_NEGATIVE_LOSSES]
    if known and all((c.weight_in_total or 0.0) < 0 for c in known):
        return None
    severity: Severity = "error" if known else "info"
    start = f", from {number(m.probe.losses[0])} at the first step" if m.probe.losses else ""
    what = f"it raises {known[0].function}{start}" if known else f"it raises the objective{start}; right only if that is meant to grow"
    return found(
        severity,
        f"the optimizer {m.optimizer.name} has maximize=True (a loss needs False): {what}",
        location=m.optimizer.site or (known[0].site if known else None),
        evidence=(Evidence("maximize", 1, 0, ">"),),
        remedies=(Remedy("flip-sign", "drop maximize=True", "safe"),),
        confirmed=BY_VALUE if known else "",
    )


def _unbounded(m: Measurement) -> Finding | None:
    if m.ascent is None or not m.ascent.unbounded or any(c.function in DENSITY_LOSSES for c in m.losses):
        return None
    end = m.probe.losses[-1] if m.probe.losses else float("nan")
    return found(
        "error",
        f"the loss has no lower bound: the probe took it to {number(end)} (expected to stay above 0) "
        "and it falls faster and faster; training runs away",
        location=next((c.site for c in m.losses if c.site), None),
        evidence=(Evidence("loss at the end of the probe", end, 0.0, "<"),),
        remedies=(Remedy("flip-sign", "minimise a loss that is bounded below; check the sign of each term", "unsafe"),),
        confirmed=f"by the probe: the loss falls without bound, to {number(end)}",
    )


def _negated(m: Measurement, call: LossCall) -> Finding:
    weight = call.weight_in_total or 0.0
    total = m.probe.losses[0] if m.probe.losses else weight * (call.value or 0.0)
    runs_away = m.ascent is not None and m.ascent.unbounded
    wrong = runs_away or (len(m.losses) == 1 and total < 0)
    meaning = (
        "training maximises it, so the model learns to be wrong"
        if wrong
        else "training maximises this term; right for an adversarial one only"
    )
    return found(
        "error" if wrong else "info",
        f"{call.function} enters the total loss with weight {number(weight)} (expected above 0): {meaning}",
        location=call.site,
        evidence=(Evidence(f"d(total loss) / d({call.function})", weight, 0.0, "<"),),
        remedies=(Remedy("flip-sign", f"add {call.function} to the total instead of subtracting it", "unsafe"),),
        confirmed=("by the probe: the loss falls without bound" if runs_away else BY_VALUE) if wrong else "",
    )


RULES = (disconnected_parameters, unregistered_modules, parameters_not_in_optimizer, gradient_ascent)
