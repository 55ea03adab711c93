"""What a treatment is, and the copy that it changes."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

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


@dataclass(eq=False)
class RemedyDefinition:
    """An entry of the vocabulary: a decorated function that proposes it. How it is written into the source is in `WRITERS`, by its name."""

    propose: Propose
    name: str
    title: str  # "gradient clipping by norm"
    citation: str
    stage: Stage
    applicability: Applicability
    checkpoint: str = ""
    loop: bool = False  # of the user's own training loop: it is an edit of the source alone, proved by running the edited script
    strengths: tuple[Strength, ...] = ()
    # For treatments with strengths: settings that follow from others are recomputed, and put into words.
    derive: Callable[[Settings], dict[str, Setting]] = dict
    wording: str | Callable[[Settings], str] = ""  # "clip the norm at {max_norm:.3g}"
    apply: Apply | None = None  # None: advice, or a change of the user's training loop

    def applies(self, apply: Apply) -> Apply:
        """Decorates the function that changes the copy, and raises Inapplicable when it cannot."""
        self.apply = apply
        return apply

    def at(self, fix: Fix, **settings: Setting) -> Fix:
        """The same fix at another strength."""
        derived = self.derive({**fix.settings, **settings})
        return replace(fix, settings=derived, text=self._words(derived) or fix.text)

    def _words(self, settings: Settings) -> str:
        return self.wording.format_map(settings) if isinstance(self.wording, str) else self.wording(settings)

    def with_settings(self, finding: Finding | None, layers: tuple[str, ...] = (), /, **settings: Setting) -> Fix:
        """The fix with these settings and those that follow from them, in the treatment's own words."""
        derived = self.derive(settings)
        return self.fix(self._words(derived), finding, layers=layers, settings=derived)

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


def remedy(name: str, title: str, citation: str, **fields: Any) -> Callable[[Propose], RemedyDefinition]:
    """Makes a remedy of the function that proposes it: `propose(finding, measurement)` gives the settings for this model (for no finding in
    particular when it is None, as a trial asks), or nothing when it does not fit; it reads plain numbers only. `fields`: of the definition.
    """
    return lambda propose: RemedyDefinition(propose, name, title, citation, **fields)


# Remedies by their stage, and how safe most of it are.
wiring = partial(remedy, stage="wiring", applicability="safe")
of_loss = partial(remedy, stage="loss", applicability="unsafe")
of_data = partial(remedy, stage="data", applicability="safe")
CHECKPOINT = "saved checkpoints still load; initial weights matter only for training from scratch"
initial = partial(remedy, stage="initialization", applicability="safe", checkpoint=CHECKPOINT)
rebuilding = partial(remedy, stage="architecture", applicability="unsafe")
optimizing = partial(remedy, stage="optimizer", applicability="safe")
clipping = partial(remedy, stage="clipping", applicability="safe")
regularizing = partial(remedy, stage="regularization", applicability="safe")


def changes_loss(applied: Sequence[Fix]) -> bool:
    return any((p.stage == "loss" and not _keeps_loss(p)) or p.treatment in OTHER_LOSS for p in applied)


def _keeps_loss(p: Fix) -> bool:
    """Descent in place of ascent, if the optimizer was told to ascend."""
    return p.treatment == "flip-sign" and ("maximize" in p.settings or "lr" in p.settings)
