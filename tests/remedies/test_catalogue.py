"""The vocabulary is closed: every remedy of a rule is a treatment, or is said to be advice, with the reason."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from gradcheck.remedies import catalogue
from gradcheck.remedies.catalogue import ADVICE_ONLY, CATALOGUE, apply
from gradcheck.remedies.definition import RemedyDefinition
from gradcheck.remedies.writers import WRITERS
from gradcheck.types.fix import STAGES
from gradcheck.workload.treated import Inapplicable
from tests.literals import measurement
from tests.remedies.recipes import order, patient

RULES = Path(__file__).resolve().parents[2] / "rules"


def named_by_rules() -> set[str]:
    """First arguments of all `Remedy(...)` in the rules; a name that comes in a variable is found among the strings of its file."""
    names = set()
    for path in RULES.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Remedy" and node.args:
                first = node.args[0]
                names |= {c.value for c in ast.walk(first) if isinstance(c, ast.Constant) and isinstance(c.value, str)}
    return names


def test_every_remedy_of_a_rule_is_a_treatment_or_advice() -> None:
    names = named_by_rules()
    assert len(names) > 60
    assert names <= set(CATALOGUE) | set(ADVICE_ONLY), names - set(CATALOGUE) - set(ADVICE_ONLY)


def test_advice_is_what_rules_name_and_no_treatment_does() -> None:
    assert set(ADVICE_ONLY) <= named_by_rules()
    assert not set(ADVICE_ONLY) & set(CATALOGUE)
    assert all(len(reason) > 20 for reason in ADVICE_ONLY.values())


def test_no_name_is_given_twice() -> None:
    every = [t.name for module in catalogue.MODULES for t in module.REMEDIES]
    assert len(every) == len(set(every)) == len(CATALOGUE)


def test_the_trial_finds_what_it_offers() -> None:
    offered = """l1 l2 elastic-net dropout early-stopping larger-batch smaller-network label-smoothing mixup random-flip random-shift
    random-crop input-noise token-dropout warm-up cosine-schedule step-schedule clip-gradient-norm clip-gradient-value
    adaptive-gradient-clipping batch-normalization layer-normalization group-normalization decoupled-weight-decay standardize-input
    xavier-init he-init orthogonal-init lsuv-init replace-activation lower-learning-rate add-residual""".split()
    assert not set(offered) - set(CATALOGUE)


@pytest.mark.parametrize("treatment", CATALOGUE.values(), ids=lambda t: t.name)
def test_entries_are_complete(treatment: RemedyDefinition) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", treatment.name)
    assert treatment.title
    assert treatment.stage in STAGES
    assert re.search(r"\b(19|20)\d\d\b|documentation", treatment.citation), "a citation has an author and a year"
    assert (treatment.apply is None) == treatment.loop
    assert not treatment.loop or treatment.name in WRITERS
    for strength in treatment.strengths:
        assert strength.low < strength.high and strength.low <= strength.default <= strength.high


@pytest.mark.parametrize("treatment", CATALOGUE.values(), ids=lambda t: t.name)
def test_what_is_proposed_for_no_finding_names_its_strengths(treatment: RemedyDefinition) -> None:
    for p in treatment.propose(None, measurement()):
        assert (p.treatment, p.stage) == (treatment.name, treatment.stage)
        assert p.text and p.citation and p.findings == ()
        for strength in treatment.strengths:
            stronger = treatment.at(p, **{strength.setting: strength.high})
            assert stronger.settings[strength.setting] == strength.high
            assert stronger.text != treatment.at(p, **{strength.setting: strength.low}).text


@pytest.mark.parametrize(("name", "why"), [("call-step", "changed in the source"), ("fix-labels", "cannot be read from the numbers")])
def test_advice_and_treatments_of_the_loop_cannot_be_applied_and_say_why(name: str, why: str) -> None:
    with pytest.raises(Inapplicable, match=why):
        apply(patient(), order("l2", weight_decay=0.1).__class__(name, "", "wiring", "advice"))


def test_what_was_applied_is_noted() -> None:
    p = patient()
    given = order("clip-gradient-norm", max_norm=1.0)
    apply(p, given)
    assert p.applied == [given]
    assert p.copy().applied == [given]
