"""What the full format says about treatment."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import pytest

from gradcheck.report.console import make_console, show
from gradcheck.report.formatting import View
from gradcheck.report.outcomes import tail
from gradcheck.report.outputs import Output, write_outputs
from gradcheck.saved_run import dumps, load
from gradcheck.types.fix import TIME_WAS_UP, Change, Effect, Fix, Outcome, Proof
from gradcheck.types.report import Report
from tests.literals import measurement, run

RATE = Fix(
    "lower-learning-rate", "set the learning rate to 0.1", "optimizer", "safe", {"lr": 0.1}, findings=("OPT001",), citation="Smith 2017"
)
NORM = Fix("insert-normalization", "normalise 3 layers", "architecture", "unsafe", findings=("GRAD001",), checkpoint="keys change")
EFFECT = Effect("training loss", 2.31, 0.12, -2.19, -2.3, -2.1, 3, True)
BASE, TREATED = (run([2.3] * 100),), (run([2.3 * 0.95**i for i in range(100)]),)
DIFF = "--- a/model.py\n+++ b/model.py\n@@ -1 +1 @@\n-lr=10\n+lr=0.1\n"
KEPT = Outcome(
    RATE,
    "kept",
    changes=(Change("OPT001", "update per step", 30.6, 0.02, 0.1, ">", "of the weight"), Change("OPT001", "spikes", 4.0, None, 1.0)),
    cured=("OPT001",),
    effect=EFFECT,
    base=BASE,
    treated=TREATED,
    diff=DIFF,
)
VAIN = Outcome(replace(RATE, treatment="warm-up"), "not-verified", "its findings stay")
REFUSED = Outcome(NORM, "untried", "only with --unsafe-fixes")
ADVICE = Outcome(Fix("clean-data", "look at [bold]sample 7[/bold]", "data", "advice", findings=("DATA002",)), "advice")


def report(*outcomes, proof=None):
    return Report("model.py", (), (), (measurement(),), outcomes=outcomes, proof=proof)


def shown(r, color="never"):
    out = io.StringIO()
    show(r, make_console(out, color))
    return out.getvalue()


def test_a_remedy_is_shown_with_its_edit_its_numbers_and_its_training():
    text = shown(report(KEPT, VAIN, REFUSED, ADVICE, proof=Proof(EFFECT, BASE, TREATED, ("OPT001",), ("GRAD001",))))
    assert "remedy 1: lower-learning-rate for OPT001  safe\nwhat: set the learning rate to 0.1\n  --- a/model.py\n" in text
    assert "  -lr=10\n  +lr=0.1\n" in text
    assert "measured: update per step = 30.6 of the weight -> 0.02 of the weight   (needs <= 0.1)" in text
    assert "          spikes = 4 -> no longer there   (needs <= 1)" in text
    assert "training: training loss 2.31 -> 0.12   difference -2.19, 95 % interval -2.3 .. -2.1, 3 seeds\n          untreated ██" in text
    assert "note: source: Smith 2017" in text
    assert "tried: warm-up  did not help: its findings stay" in text
    assert "not tried: insert-normalization  only with --unsafe-fixes" in text
    assert "help: look at [bold]sample 7[/bold] (DATA002)" in text
    assert "Would apply 1 remedy: cures OPT001; left: GRAD001. 1 more remedy with --unsafe-fixes." in text


def test_what_was_written_is_called_applied():
    proof = Proof(EFFECT, BASE, TREATED, ("OPT001",))
    assert tail(report(KEPT, proof=proof), written=True) == "Applied 1 remedy: cures OPT001; nothing is left."
    part = tail(report(KEPT, replace(KEPT, diff=""), proof=proof), written=True)
    assert part == "Applied 1 of 2 remedies to the source; on the copy all together: cures OPT001; nothing is left."


@pytest.mark.parametrize("format", ["full", "brief", "markdown", "html"])
def test_every_format_says_whether_the_edits_are_in_the_source(format, tmp_path):
    proof = Proof(EFFECT, BASE, TREATED, ("OPT001",))
    said = {}
    for written in (False, True):
        place = tmp_path / f"{written}"
        write_outputs([report(KEPT, proof=proof)], [Output(format, place)], View("never", written=written))
        said[written] = place.read_text("utf-8")
    assert "Would apply 1 remedy" in said[False] and "Applied 1 remedy" in said[True]


def test_added_and_removed_lines_have_colours():
    text = shown(report(KEPT, proof=Proof(EFFECT, BASE, TREATED)), "always")
    assert "\x1b[32m+lr=0.1\x1b[0m" in text and "\x1b[31m-lr=10\x1b[0m" in text


def test_both_curves_are_on_one_scale():
    text = shown(report(KEPT, proof=Proof(EFFECT, BASE, TREATED)))
    untreated, treated = (next(line for line in text.splitlines() if name in line).split()[-1] for name in ("untreated", "with it"))
    assert set(untreated) == {"█"} and treated[0] == "█" and treated[-1] == "▁"


def test_several_remedies_are_told_apart_from_all_together():
    one = replace(KEPT, prescription=replace(RATE, treatment="he-init"))
    text = shown(report(KEPT, one, proof=Proof(EFFECT, BASE, TREATED, ("OPT001",))))
    assert (
        text.count("without it") == 2
        and "all together:\ntraining:" in text
        and "Would apply 2 remedies: cures OPT001; nothing is left." in text
    )


def test_divergence_and_noise_are_said_in_words():
    rescued = replace(KEPT, effect=replace(EFFECT, base=math.inf, difference=-math.inf, low=-math.inf, high=-math.inf))
    noise = replace(KEPT, effect=replace(EFFECT, low=-3.0, high=0.5))
    assert "diverged without, no more with it, 3 seeds" in shown(report(rescued, proof=Proof(EFFECT, BASE, TREATED)))
    assert "3 seeds: no difference beyond noise" in shown(report(noise, proof=Proof(EFFECT, BASE, TREATED)))


def test_tails_without_a_remedy():
    assert tail(report()) == "Nothing to fix."
    assert tail(report(REFUSED)) == "Nothing to fix. 1 more remedy with --unsafe-fixes."


def test_what_is_kept_but_has_no_edit_is_counted():
    assert "1 remedy (0 of them in the source)" in tail(report(replace(KEPT, diff=""), proof=Proof(EFFECT, BASE, TREATED)))


def test_outcomes_and_proof_survive_json_with_infinities(tmp_path):
    rescued = replace(KEPT, effect=replace(EFFECT, base=math.inf))
    r = report(rescued, ADVICE, proof=Proof(EFFECT, BASE, TREATED, ("OPT001",)))
    (tmp_path / "run.json").write_text(dumps(r))
    again = load(tmp_path / "run.json")
    assert again.outcomes[0].effect == rescued.effect and again.outcomes[1] == ADVICE and again.proof.cured == ("OPT001",)
    assert shown(again) == shown(r)


def test_a_fix_that_had_no_time_says_so():
    late = Outcome(RATE, "untried", TIME_WAS_UP)
    assert tail(report(late)) == "Time ran out before 1 remedy for 0 findings could be tried: raise --budget."
    assert "No remedy was found" not in tail(report(late, VAIN))
