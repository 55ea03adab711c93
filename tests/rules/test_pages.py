"""What holds for every rule: its code, its name, its limits, its page."""

from __future__ import annotations

import re
import textwrap
from collections import Counter

import pytest

from gradcheck.judge.registry import load_rules
from gradcheck.types.rule import PAGE_HEADINGS, Rule

RULES = tuple(r for r in load_rules() if r.origin == "gradcheck")
EVERY_RULE = pytest.mark.parametrize("rule", RULES, ids=lambda r: r.code)

# Codes and names of the catalogue; both are stable.
CATALOGUE = {
    "GRAPH001": ("disconnected-parameters", "error"),
    "GRAPH002": ("unregistered-modules", "error"),
    "GRAPH003": ("parameters-not-in-optimizer", "error"),
    "GRAPH004": ("gradient-ascent", "error"),
    "GRAPH005": ("wrong-gradient", "error"),
    "GRAPH006": ("gradients-not-cleared", "error"),
    "GRAPH007": ("samples-mixed", "error"),
    "GRAPH008": ("input-ignored", "warning"),
    "GRAD001": ("vanishing-gradient", "error"),
    "GRAD002": ("exploding-gradient", "error"),
    "GRAD003": ("gradient-through-time", "error"),
    "GRAD004": ("zero-gradient", "error"),
    "GRAD005": ("gradient-outliers", "info"),
    "ACT001": ("saturated-activation", "error"),
    "ACT002": ("dead-units", "error"),
    "ACT003": ("deep-sigmoid", "error"),
    "ACT004": ("collapsed-representation", "error"),
    "ACT005": ("attention-collapse", "error"),
    "ACT006": ("missing-nonlinearity", "warning"),
    "ACT007": ("dormant-units", "warning"),
    "INIT001": ("signal-gain", "warning"),
    "INIT002": ("weight-scale", "error"),
    "INIT003": ("residual-growth", "warning"),
    "INIT004": ("recurrent-initialization", "warning"),
    "INIT005": ("degenerate-initialization", "error"),
    "INIT006": ("symmetric-units", "error"),
    "INIT007": ("default-initialization", "error"),
    "INIT008": ("output-bias-off-prior", "info"),
    "NORM001": ("missing-normalization", "warning"),
    "NORM002": ("deep-batchnorm-without-skips", "warning"),
    "NORM003": ("batchnorm-small-batch", "error"),
    "NORM004": ("dropout-before-batchnorm", "warning"),
    "NORM005": ("batchnorm-in-eval", "error"),
    "NORM006": ("batchnorm-momentum", "warning"),
    "NORM007": ("bias-before-normalization", "info"),
    "NORM008": ("post-norm-without-warmup", "warning"),
    "LOSS001": ("output-loss-mismatch", "error"),
    "LOSS002": ("loss-domain", "error"),
    "LOSS003": ("initial-loss", "warning"),
    "LOSS004": ("softmax-dimension", "error"),
    "LOSS005": ("loss-not-falling", "error"),
    "LOSS006": ("unstable-loss", "warning"),
    "LOSS007": ("adversary-saturated", "warning"),
    "LOSS008": ("no-learning-signal", "error"),
    "TUNE001": ("adapter-coverage", "warning"),
    "TUNE002": ("adapter-scale", "info"),
    "LOSS009": ("inert-loss-term", "warning"),
    "LOSS010": ("unbalanced-loss-terms", "warning"),
    "NUM001": ("non-finite", "error"),
    "NUM002": ("singular-derivative", "error"),
    "NUM003": ("half-overflow", "error"),
    "NUM004": ("half-underflow", "warning"),
    "NUM006": ("precision-forecast", "info"),
    "NUM005": ("lost-updates", "warning"),
    "OPT001": ("learning-rate-too-high", "error"),
    "OPT002": ("learning-rate-too-low", "error"),
    "OPT003": ("adam-epsilon", "warning"),
    "OPT004": ("coupled-weight-decay", "info"),
    "OPT005": ("warmup-missing", "warning"),
    "OPT006": ("batch-size", "info"),
    "OPT007": ("past-critical-rate", "warning"),
    "OPT008": ("momentum-too-long", "warning"),
    "CLIP001": ("clipping-needed", "warning"),
    "CLIP002": ("clipping-too-tight", "warning"),
    "CLIP003": ("clipping-by-value", "info"),
    "REG001": ("decay-too-strong", "error"),
    "REG002": ("decay-on-norm-and-bias", "info"),
    "REG003": ("dropout-too-strong", "error"),
    "REG004": ("overfitting", "warning"),
    "REG005": ("over-regularized", "warning"),
    "DATA001": ("unscaled-input", "error"),
    "DATA002": ("non-finite-input", "error"),
    "DATA003": ("unscaled-target", "warning"),
    "DATA004": ("degenerate-labels", "error"),
    "DATA005": ("uninformative-features", "info"),
    "DATA006": ("validation-leak", "error"),
    "DATA007": ("labels-shuffled", "warning"),
    "LOOP001": ("optimizer-never-steps", "error"),
    "LOOP002": ("clipping-misplaced", "error"),
    "LOOP003": ("evaluation-mode-in-training", "error"),
    "LOOP004": ("schedule-kills-rate", "error"),
    "LOOP005": ("same-batch-every-step", "warning"),
    "LOOP006": ("accumulation-unscaled", "error"),
    "LOOP007": ("scaler-misused", "error"),
    "LOOP008": ("ranks-disagree", "error"),
    "LOOP009": ("optimizer-recreated", "error"),
    "LOOP010": ("graph-retained", "warning"),
    "LOOP011": ("accumulation-unweighted", "warning"),
    "LOOP012": ("average-incomplete", "warning"),
    "LOOP013": ("schedule-misplaced", "warning"),
    "LOOP014": ("state-not-loaded", "warning"),
    "LOG001": ("log-loss-not-finite", "error"),
    "LOG002": ("log-loss-diverged", "error"),
    "LOG003": ("log-loss-spikes", "warning"),
    "LOG004": ("log-loss-flat", "warning"),
    "LOG005": ("log-rate-jumps", "warning"),
    "LOG006": ("log-evaluation-departs", "warning"),
    "LOG007": ("log-gradient-norms", "warning"),
    "WATCH001": ("second-moment-lags", "warning"),
    "WATCH002": ("gradient-out-of-line", "warning"),
    "WATCH003": ("attention-logits-grow", "warning"),
    "WATCH004": ("output-logits-drift", "warning"),
    "WATCH005": ("expert-dies", "warning"),
    "WATCH006": ("weights-run-away", "warning"),
    "WATCH007": ("signal-runs-away", "warning"),
    "WATCH008": ("loss-scale-falls", "warning"),
    "WATCH009": ("gradients-leave-format", "warning"),
    "SEQ001": ("future-leak", "error"),
    "SEQ002": ("labels-misaligned", "error"),
    "SEQ003": ("nothing-supervised", "error"),
    "SEQ004": ("padding-leak", "error"),
    "MOE001": ("router-collapse", "error"),
}
CODE = re.compile(r"[A-Z]+\d{3}")


def sections(rule: Rule) -> dict[str, str]:
    """Heading -> text of the rule's page."""
    parts = re.split(r"(?m)^## (.+)$", rule.page)
    return dict(zip(parts[1::2], (text.strip("\n") for text in parts[2::2]), strict=True))


def test_the_rules_of_the_catalogue_are_there():
    assert {r.code: (r.name, r.up_to) for r in RULES if r.family != "META"} == CATALOGUE


def test_no_code_and_no_name_is_used_twice():
    assert not [x for x, n in (Counter(r.code for r in RULES) + Counter(r.name for r in RULES)).items() if n > 1]


@EVERY_RULE
def test_codes_and_names_have_their_form(rule):
    assert CODE.fullmatch(rule.code)
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", rule.name)
    assert not rule.name.startswith("no-") or rule.name == "no-learning-signal"  # the faulty state is named, not the cure


@EVERY_RULE
def test_the_summary_is_one_sentence(rule):
    first, _, rest = rule.page.partition("\n")
    assert first.endswith(".") and first[0].isupper() and not rest.partition("\n")[0].strip(), first
    assert len(first) <= 120


@EVERY_RULE
def test_the_page_has_the_fixed_headings_in_order_and_none_is_empty(rule):
    assert tuple(sections(rule)) == PAGE_HEADINGS
    assert all(text.strip() for text in sections(rule).values())


def code(section: str) -> str:
    """The section's block of Python; the section holds nothing else."""
    match = re.fullmatch(r"```python\n(.+?)\n```", section, re.DOTALL)
    assert match is not None, section
    return match[1]


@EVERY_RULE
def test_example_and_cure_are_code_and_differ(rule):
    example, cure = code(sections(rule)["Example"]), code(sections(rule)["Use instead"])
    assert example != cure
    for text in (example, cure):
        compile("async def _():\n" + textwrap.indent(text, "    "), rule.code, "exec")


@EVERY_RULE
def test_every_limit_has_a_source_and_stands_on_the_page(rule):
    text = sections(rule)["Limits and their sources"] + sections(rule)["How it is measured"]
    for name, limit in rule.limits.items():
        assert re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", name), name
        assert len(limit.source) > 3, name
        assert f"`{name}`" in text or f"`{name.replace('_', '-')}`" in text, name


@EVERY_RULE
def test_consequences_are_rules_other_than_itself(rule):
    assert rule.code not in rule.explains and len(set(rule.explains)) == len(rule.explains)
    assert all(CODE.fullmatch(code) for code in rule.explains)


@EVERY_RULE
def test_a_rule_says_what_it_needs_measured(rule):
    assert rule.needs or rule.family == "META"
