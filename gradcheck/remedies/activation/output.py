"""Activations on the output that the loss does not expect."""

from gradcheck.remedies.activation.hidden import replace_one
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.modules.rewriting import operand
from gradcheck.remedies.modules.surgery import rewired
from gradcheck.remedies.modules.user_code import edit_code
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.losses import LossCall
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload


def remove_activation(treated: TreatedWorkload, fix: Fix) -> None:
    """Takes the activation away, or puts a sigmoid in its place."""
    if not fix.layers:
        edit_code(treated, fix.location, operand)
        return
    with rewired(treated):
        for name in fix.layers:
            replace_one(treated, name, fix.location, str(fix.settings.get("new", "identity")))


def propose_removal(finding: Finding | None, m: Measurement) -> list[Fix]:
    """Nothing between last layer and loss; a sigmoid for one unit whose loss takes probabilities."""
    call = _call_of(finding, m)
    layer = m.layer(call.producer_layer) if call is not None and call.producer_layer is not None else None
    if call is None and finding is not None:
        return _in_code(finding, m)
    if call is None or layer is None or layer.calls > 1:
        return []  # called more than once, it is a hidden layer's activation too
    function = str(call.producer)
    settings: dict[str, Setting] = {"function": function}
    text = f"hand the loss the values before {function} ({layer.name}); apply {function} only where predictions are read"
    if call.function == "binary_cross_entropy" and function in ("softmax", "log_softmax"):
        settings["new"] = "sigmoid"
        text = f"put a sigmoid in place of {function} over one unit"
    return [REMOVE.fix(text, finding, layers=(layer.name,), settings=settings)]


def _in_code(finding: Finding, m: Measurement) -> list[Fix]:
    """A function that no layer calls: the forward method of the model does, or the loop."""
    call = next((c for c in m.losses if c.producer in _ACTIVATIONS and not c.producer_layer and c.producer_site == finding.location), None)
    if call is None or finding.location is None:
        return []
    text = f"hand the loss the values before {call.producer}; apply {call.producer} only where predictions are read"
    return [REMOVE.fix(text, finding, settings={"function": str(call.producer)})]


def _call_of(finding: Finding | None, m: Measurement) -> LossCall | None:
    """The loss whose input an activation makes, at the finding's place where it has one."""
    made = [c for c in m.losses if c.producer in _ACTIVATIONS and c.producer_layer is not None]
    here = [c for c in made if finding is not None and c.producer_layer in finding.layers]
    return next(iter(here), None)


_ACTIVATIONS = frozenset("softmax log_softmax sigmoid relu relu6 tanh softplus hardtanh hardsigmoid elu leaky_relu gelu silu".split())

REMOVE = RemedyDefinition(
    "remove-output-activation",
    "no activation before the loss",
    "loss",
    "unsafe",
    "PyTorch documentation, torch.nn.CrossEntropyLoss and BCEWithLogitsLoss: the input is logits; Pang et al. 2020",
    propose_removal,
    remove_activation,
    "keys stay the same; predictions need the activation where they are read",
)
REMEDIES: tuple[RemedyDefinition, ...] = (REMOVE,)
