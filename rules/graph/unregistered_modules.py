import math
import re
from collections.abc import Sequence

from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import HiddenTensor
from gradcheck.types.rule import Limits, Verdict, found, rule


@rule("GRAPH002", up_to="error", needs=("graph",), explains=("GRAPH001", "GRAPH003", "LOSS005", "OPT001", "OPT007", "OPT002"))
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
        evidence=Evidence("trainable tensors outside parameters()", len(tensors), 0, ">"),
        remedies=_registration(first),
        confirmed=BY_VALUE,
    )


def _registration(tensor: HiddenTensor) -> Remedy:
    kind = "Parameter" if tensor.owner in ("Parameter", "Tensor") else "Module"
    keyed = tensor.name.partition("[")[2].startswith(("'", '"'))
    container = f"nn.{kind}{'Dict' if keyed else 'List'}"
    held = "hold them in an" if "[" in tensor.name else "assign them as an attribute of the model, or hold them in an"
    return Remedy("register-modules", f"{held} {container}, so that parameters() lists them", "unsafe")


def _holders(tensors: Sequence[HiddenTensor]) -> list[str]:
    """The hidden modules, or the tensors where none holds them, in natural order; "self.a[2]" as "self.a.2"."""
    names = {t.name if t.owner in ("Parameter", "Tensor") else _module_of(t.name) for t in tensors if t.name}
    dotted = {re.sub(r"\[(\d+)\]", r".\1", name) for name in names}
    return sorted(dotted, key=lambda name: [int(x) if x.isdigit() else -1 for x in name.split(".")])


def _module_of(name: str) -> str:
    """The item of a container that a tensor lies in; without one the module that holds it."""
    item, bracket, _ = name.rpartition("]")
    return item + bracket or name.rpartition(".")[0]
