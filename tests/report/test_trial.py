"""A trial in the terminal, on literals."""

from __future__ import annotations

import io
import math
from dataclasses import replace

from gradcheck.report.console import make_console, show
from gradcheck.report.trial import conditions, curve, scale_of
from gradcheck.types.fix import Effect, Fix
from gradcheck.types.report import Report
from gradcheck.types.trial import Curve, Entry, Interaction, MetricRange, TrialResult
from tests.literals import measurement


def falling(*values):
    return Curve(tuple(range(len(values))), values, values, values)


BASE = Entry(
    "untreated", "untreated", "untreated", seeds=6, fresh=True, training=falling(2.0, 0.1), validation=falling(2.0, 1.5), step_ms=1.0
)
GOOD = Entry(
    "l1",
    "l1 0.3",
    "helps",
    "l1 0.3 lowers validation loss by 0.5 ± 0.1 (1.5 -> 1)",
    (Fix("l1", "add an L1 penalty", "regularization", "safe"),),
    Effect("validation loss", 1.5, 1.0, -0.5, -0.6, -0.4, 6, True),
    True,
    6,
    100,
    falling(2.0, 0.4),
    falling(2.0, 1.0),
    (MetricRange("R2", 0.4, 0.3, 0.5),),
)
WILD = Entry(
    "raise", "raise 3", "diverged", "raise 3 diverges in 1 of 1 seed", seeds=1, training=falling(2.0, math.inf), validation=falling(2.0)
)
UNFIT = Entry("qk-norm", "qk-norm", "inapplicable", "qk-norm is not applicable: no attention", reason="no attention")
RESULT = TrialResult(
    "model.py",
    "regression",
    "validation loss",
    BASE,
    (GOOD, WILD, UNFIT),
    "L1 0.3 lowers validation loss.",
    0.02,
    interactions=(Interaction(("l1", "dropout"), (-0.5, -0.2), -0.55, 0.15, 0.1, 0.2, "overlap"),),
    recommended="l1",
    diff="--- a/model.py\n+++ b/model.py\n+new\n-old\x1b[31m\n",
    unwritten=(("l1", "there is no site"),),
    steps=100,
    samples=(60, 20),
    budget=120.0,
    seconds=30.0,
)


def text(**options):
    file = io.StringIO()
    show(Report("model.py", (), (), (measurement(),), trial=RESULT), make_console(file, "never"), **options)
    return file.getvalue()


def test_verdict_table_words_interaction_and_edit():
    shown = text()
    assert "trial: L1 0.3 lowers validation loss." in shown
    rows = {line.split()[1] if line[0] in "+!" else line.split()[0]: line for line in shown.splitlines() if "█" in line}
    assert set(rows) == {"untreated", "l1", "raise"}
    assert rows["untreated"].split()[-3:] == ["1.5", "6", "1.00"] and "(1)" in rows["raise"]
    assert "+ l1 0.3 lowers validation loss by 0.5 ± 0.1 (1.5 -> 1)" in shown and "! raise 3 diverges in 1 of 1 seed" in shown
    assert "together: l1 and dropout overlap: -0.55 together, -0.5 and -0.2 alone" in shown
    assert "+new" in shown and "\\x1b[31m" in shown and "\x1b" not in shown
    assert "help: add an L1 penalty (no edit: there is no site)" in shown
    assert "100 steps, 60 samples to train and 20 to validate on; 6 seeds in the final" in shown
    assert "; no final (in brackets: seeds of the screening)" in conditions(replace(RESULT, base=replace(BASE, fresh=False)))


def test_what_was_not_tried_is_named_and_explained_on_request():
    assert "not applicable: qk-norm" in text() and "no attention" not in text()
    assert "qk-norm is not applicable: no attention" in text(show_all=True)


def test_a_report_without_a_trial_says_nothing_of_one():
    file = io.StringIO()
    show(Report("model.py", (), (), (measurement(),)), make_console(file, "never"))
    assert "trial" not in file.getvalue()


def test_curves_share_one_scale_and_show_divergence():
    scale = scale_of([falling(2.0, 1.0, 0.0), falling(2.0, 1.0)])
    assert curve(falling(2.0, 1.0, 0.0), (0.0, 2.0)) == "█▅▁" and scale == (0.0, 2.0)
    assert curve(falling(2.0, math.inf), scale) == "█!"
    assert len(curve(falling(*map(float, range(100))), (0.0, 99.0))) == 16


def test_one_curve_that_explodes_does_not_flatten_the_others():
    assert scale_of([falling(2.0, 0.5), falling(2.0, 1e6)]) == (0.5, 4.0)
