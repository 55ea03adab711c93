"""What a treatment is, and the copy that it changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gradcheck.types.finding import Finding
from gradcheck.types.fix import Applicability, Fix, Setting, Stage
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

# Treatments after which the loss measures something else: it cannot be compared with the untreated one's.
OTHER_LOSS = ("standardize-target", "label-smoothing", "l1", "elastic-net", "mixup")


@dataclass(frozen=True)
class Strength:
    """A continuous setting that a search may vary."""

    setting: str
    default: float
    low: float
    high: float
    log: bool = True


Propose = Callable[[Finding | None, Measurement], list[Fix]]
Apply = Callable[[TreatedWorkload, Fix], None]
Settings = Mapping[str, Setting]


@dataclass(frozen=True)
class RemedyDefinition:
    """An entry of the vocabulary.

    `propose(finding, measurement)` gives the settings for this model (for no finding in particular when it is None, as a trial asks),
    or nothing when it does not fit; it reads plain numbers only. `apply(treated, fix)` changes the copy, and raises
    Inapplicable when it cannot. How it is written into the source is in `gradcheck.remedies.editing`, under the same name.
    """

    name: str
    title: str  # "gradient clipping by norm"
    stage: Stage
    applicability: Applicability
    citation: str
    propose: Propose
    apply: Apply | None = None  # None: advice, or a change of the user's training loop
    checkpoint: str = ""
    loop: bool = False  # of the user's own training loop: it is an edit of the source alone, proved by running the edited script
    strengths: tuple[Strength, ...] = ()
    # For treatments with strengths: settings that follow from others are recomputed, and put into words.
    derive: Callable[[Settings], dict[str, Setting]] = dict
    wording: Callable[[Settings], str] | None = None

    def at(self, fix: Fix, **settings: Setting) -> Fix:
        """The same fix at another strength."""
        derived = self.derive({**fix.settings, **settings})
        text = self.wording(derived) if self.wording is not None else fix.text
        return replace(fix, settings=derived, text=text)

    def fix(
        self,
        text: str,
        finding: Finding | None = None,
        *,
        layers: tuple[str, ...] = (),
        settings: Mapping[str, Setting] | None = None,
        applicability: Applicability | None = None,
    ) -> Fix:
        return Fix(
            self.name,
            text,
            self.stage,
            applicability or self.applicability,
            dict(settings or {}),
            layers,
            (finding.code,) if finding is not None else (),
            finding.location if finding is not None else None,
            self.checkpoint,
            self.citation,
        )


def changes_loss(applied: Sequence[Fix]) -> bool:
    return any((p.stage == "loss" and not _keeps_loss(p)) or p.treatment in OTHER_LOSS for p in applied)


def _keeps_loss(p: Fix) -> bool:
    """Descent in place of ascent, if the optimizer was told to ascend."""
    return p.treatment == "flip-sign" and ("maximize" in p.settings or "lr" in p.settings)
