"""What is missing from a measurement as a whole: no step, no layer, a single step, a training that was too short to tell."""

import math
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.wording import BY_VALUE
from gradcheck.types.finding import Finding
from gradcheck.types.measurement import Measurement, NotMeasured


def more_time(seconds: float) -> str:
    return f"`--budget SECONDS` gives more time than these {seconds:.3g} s"


def described(error: BaseException | None) -> str:
    """An exception as the detail of something that was not measured; with its place, where it says nothing itself."""
    if error is None:
        return ""
    last = traceback.extract_tb(error.__traceback__)[-1:] if not str(error) else []
    return f"{type(error).__name__}: {error}" + "".join(f"in {Path(f.filename).name}, line {f.lineno}: {f.line}" for f in last)


def unread_layers(failures: Mapping[str, str]) -> list[NotMeasured]:
    """`failures`: names of layers, and the exceptions."""
    return [NotMeasured(f"layer {name}", "its values could not be summarised", detail=detail) for name, detail in failures.items()]


def gaps(m: Measurement, steps: int, seconds: float, *, layers: bool = True) -> Iterator[NotMeasured]:
    """`steps`: that the short training was to take; `seconds`: the time for all of the measuring. `layers`: the model holds some."""
    taken = len(m.probe.losses)
    if not taken and not any(n.what == "probe" for n in m.not_measured):
        yield NotMeasured("probe", "the short training took no step")
    elif m.probe.ended == "budget" and training_outcome(m) == "unknown":
        of = f" of {steps}" if taken < steps else ""  # it goes on for longer where it has not fallen by then
        why = f"the short training was cut off after {taken}{of} steps, before it could be told whether its loss falls"
        yield NotMeasured("probe", why, "short", more_time(seconds))
    if layers and _saw_nothing_inside(m):
        why = "none of the model's own modules was seen to run, as in models that torch.jit has compiled"
        for what in ("signals", "units", "similarity"):
            yield NotMeasured(what, why, remedy="scan the model as it is before it is compiled")


def _saw_nothing_inside(m: Measurement) -> bool:
    """Modules hold trained parameters, and only the outermost was seen. A model that holds its parameters itself has nothing inside."""
    return not any(x.name for x in m.layers) and any(p.trainable and p.layer and p.groups for p in m.parameters)


def takes_one_step(m: Measurement) -> bool:
    """Whether the script ended by itself after one step, so that no loss of it was computed with changed weights.

    A loop that goes on clearing gradients without stepping, where the second loss is not finite, leaves out its steps for that reason.
    """
    loop = m.loop
    if loop is None or m.probe.live or loop.ended not in ("end", "exit") or (loop.skipped > 1 and m.probe.ended == "non-finite"):
        return False
    return loop.steps == loop.backwards == 1 and all(map(math.isfinite, loop.losses))


def as_of_one_step(finding: Finding, m: Measurement) -> Finding:
    """An error that only further steps confirm is a warning if the script takes none."""
    if finding.severity != "error" or finding.confirmed == BY_VALUE or not takes_one_step(m):
        return finding
    message = f"{finding.message}; the script itself takes only one step: this is what more of them on the same batch would lead to"
    return replace(finding, severity="warning", message=message, confirmed="")
