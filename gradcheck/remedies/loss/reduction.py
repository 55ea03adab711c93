"""Terms of the loss that are averaged where they were summed: an edit of the source, proved by running the edited script."""

from __future__ import annotations

from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import Inapplicable, TreatedWorkload


def propose(finding: Finding | None, m: Measurement) -> list[Fix]:
    remedy = next((r for r in finding.remedies if r.name == "average-term"), None) if finding is not None else None
    return [AVERAGE.fix(remedy.text, finding)] if remedy is not None else []


def apply(treated: TreatedWorkload, p: Fix) -> None:
    raise Inapplicable("how a term is taken together is written in the source")


AVERAGE = RemedyDefinition(
    "average-term",
    "a mean for a sum",
    "loss",
    "unsafe",
    "Kingma and Welling 2014, Auto-encoding variational Bayes",
    propose,
    apply,
)
REMEDIES = (AVERAGE,)
