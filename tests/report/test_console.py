"""The full and concise formats."""

from __future__ import annotations

import io
import re
from dataclasses import replace

import pytest

from gradcheck.report.console import make_console, show
from gradcheck.report.listings import concise_lines
from gradcheck.types.finding import Evidence, Finding, Remedy, RuleState
from gradcheck.types.measurement import Assumption, Environment, NotMeasured
from gradcheck.types.report import Report
from tests.literals import location, measurement, profile, snapshots, stack
from tests.report.reports import FAILED, IN_PART

SOURCE = {
    39: "        self.layers = nn.ModuleList()",
    40: "        for i in range(depth):",
    41: "            self.layers.append(Block(dim, norm=None))",
    42: "        self.head = nn.Linear(dim, classes)",
}
SITE = location(41, column=32, end_line=41, end_column=53, scope="Encoder.__init__")
FAULTY = Finding(
    "GRAD001",
    "vanishing-gradient",
    "error",
    "gradient vanishes in 23 of 100 layers",
    tuple(f"encoder.layers.{i}.linear1" for i in range(23)),
    SITE,
    (Evidence("|g|", 7.4e-7, 1e-5, "<", layer="encoder.layers.0.linear1", spread=(6.1e-7, 9e-7)),),
    (Remedy("insert-normalization", "normalise the block input", "unsafe"),),
    "by the probe: 100 steps moved the loss from 2.31 to 2.3",
)
FOLLOWS = Finding("GRAD004", "zero-gradient", "warning", "zero gradients in 2 layers", cause="GRAD001")
PLAIN = Finding("DATA001", "unscaled-input", "warning", "input [bold]x[/bold] is 300 times too large")
PASSED = tuple(RuleState(f"A00{i}", f"rule-{i}", "passed") for i in range(3))
STATES = (
    *PASSED,
    RuleState("B001", "elsewhere", "not-applicable", "no ReLU"),
    RuleState("B002", "broken", "crashed", "ValueError: odd (x.py, line 3)"),
)


def report(*findings, **overrides):
    layers = stack(100, lambda i: {"snapshots": snapshots(gradient=1e-7 * 1.13**i)})
    m = measurement(layers=layers, snippets={"model.py": SOURCE}, environment=Environment(torch="2.13.0"))
    return Report(**{"target": "model.py", "findings": findings, "rules": STATES, "measurements": (m,), "seconds": 4.21} | overrides)


class Terminal(io.StringIO):
    """A file that says it is a terminal."""

    def isatty(self):
        return True


def text_of(shown, file=None, color="auto", **options):
    file = file or io.StringIO()
    show(shown, make_console(file, color), **options)
    return file.getvalue()


def test_a_finding_in_full():
    text = text_of(report(FAULTY, FOLLOWS))
    assert (
        """\
vanishing-gradient (GRAD001) error: gradient vanishes in 23 of 100 layers
  --> model.py:41:32 in Encoder.__init__
   |
39 |         self.layers = nn.ModuleList()
40 |         for i in range(depth):
41 |             self.layers.append(Block(dim, norm=None))
   |                                ^^^^^^^^^^^^^^^^^^^^^
42 |         self.head = nn.Linear(dim, classes)
   |
measured: |g| = 7.4e-07 at encoder.layers.0.linear1   (needs >= 1e-05)   1 seed, spread 6.1e-07..9e-07
"""
        in text
    )
    assert "gradient over depth ▁▁" in text and "first 1e-07 -> last 0.018" in text
    assert "layers:   encoder.layers.{0..22}.linear1\n" in text
    assert "help: normalise the block input (unsafe: changes the architecture: old checkpoints do not fit)\n" in text
    assert "note: confirmed by the probe: 100 steps moved the loss from 2.31 to 2.3\n" in text
    assert "  └ follows: zero-gradient (GRAD004) zero gradients in 2 layers\n" in text


def test_the_tail_counts_findings_rules_and_says_how_it_was_measured():
    lines = text_of(report(FAULTY, FOLLOWS, PLAIN, suppressed=(PLAIN,))).splitlines()
    assert lines[-2] == (
        "Found 1 error, 1 warning and 1 consequence in 100 layers "
        "(3 rules passed, 1 not applicable, 1 suppressed, 1 crashed: broken (ValueError: odd (x.py, line 3)))."
    )
    assert lines[-1].startswith("100 steps x 1 seed on cpu, torch 2.13.0, 4.2 s.")
    assert "gradcheck rule vanishing-gradient" in lines[-1]


def test_a_clean_model_says_so_in_one_line():
    clean = text_of(report(rules=PASSED))
    assert clean == "No findings in 100 layers (3 rules passed). 100 steps x 1 seed on cpu, torch 2.13.0, 4.2 s.\n"


def test_names_with_brackets_are_not_markup():
    assert "input [bold]x[/bold] is 300 times" in text_of(report(PLAIN))


def test_what_was_assumed_is_said_first_and_what_was_found_on_request():
    said = (Assumption("loss", "no loss given: cross entropy"), Assumption("data", "get_batch() of model.py", given=True))
    with_guess = report(FAULTY, measurements=(replace(report().measurement, assumptions=said),))
    assert text_of(with_guess).startswith("assumed: no loss given: cross entropy\n\nvanishing")
    assert "get_batch" not in text_of(with_guess)
    assert "found: get_batch() of model.py" in text_of(with_guess, show_passed=True)


def test_what_was_not_measured_is_said():
    left_out = tuple(NotMeasured(f"layer {i}", f"reason {i}") for i in range(5))
    text = text_of(report(FAULTY, measurements=(replace(report().measurement, not_measured=left_out),)))
    assert "not measured: layer 0: reason 0" in text and "2 more were not measured" in text


def test_what_was_not_measured_for_one_reason_is_one_line():
    left_out = tuple(NotMeasured(f"layer {i}", "scripted") for i in range(9))
    text = text_of(report(FAULTY, measurements=(replace(report().measurement, not_measured=left_out),)))
    assert "not measured: layer 0, layer 1, layer 2, layer 3, layer 4, layer 5 and 3 more: scripted" in " ".join(text.split())


def test_a_run_in_part_says_how_many_looked_why_and_what_to_do():
    text = text_of(IN_PART)
    assert text == (
        "not measured: the gradient against finite differences: left out by --fast; wrong-gradient says nothing\n"
        "Judged in part: 1 of 3 applicable rules looked; the silence of the others proves nothing\n"
        "why:  could not repeat the training step\n"
        "help: watch it\n"
        "They found nothing (1 rule passed, 3 not measured).\n"
        "100 steps x 1 seed on cpu, torch 2.13.0, 1.5 s.\n"
    )
    assert "Found 1 error (1 rule passed, 3 not measured)." in text_of(FAILED) and "Judged in part" in text_of(FAILED)
    assert concise_lines(IN_PART)[-2:] == ["why: could not repeat the training step", "help: watch it"]


def test_passed_rules_are_shown_on_request():
    assert "passed: rule-1 (A001)" in text_of(report(FAULTY), show_passed=True)
    assert "not-applicable: elsewhere (B001): no ReLU" in text_of(report(FAULTY), show_passed=True)
    assert "rule-1" not in text_of(report(FAULTY))


def test_a_consequence_whose_cause_is_gone_is_still_shown():
    assert "zero-gradient (GRAD004) warning" in text_of(report(FOLLOWS))


def test_consequences_are_shown_once_when_their_cause_has_two_findings():
    second = replace(FAULTY, location=location(42))
    assert text_of(report(FAULTY, second, FOLLOWS)).count("zero-gradient") == 1


def test_a_finding_without_source_has_no_excerpt():
    text = text_of(report(replace(FAULTY, location=location(7, "other.py"))))
    assert " --> other.py:7:20" in text and "^^^" not in text


def test_the_line_of_an_installed_package_is_a_detail():
    inside = replace(FAULTY, location=replace(SITE, detail=location(120, "site-packages/torchvision/resnet.py")))
    assert "  ::: site-packages/torchvision/resnet.py:120:20\n" in text_of(report(inside))


def caret_line(text):
    return next(line for line in text.splitlines() if "^" in line)


@pytest.mark.parametrize(
    ("source", "column", "end", "under"),
    [
        ("x = nn.Linear(3, 4)", 5, 20, "nn.Linear(3, 4)"),
        ("ß = nn.Linear(3, 4)", 5, 20, "nn.Linear(3, 4)"),
        ("\tx = nn.ReLU()", 6, 15, "nn.ReLU()"),
    ],
)
def test_carets_stand_under_the_expression(source, column, end, under):
    site = location(3, column=column, end_line=3, end_column=end)
    m = replace(report().measurement, snippets={"model.py": {3: source}})
    text = text_of(report(replace(FAULTY, location=site), measurements=(m,)))
    shown = next(line for line in text.splitlines() if line.startswith("3 | "))
    carets = caret_line(text)
    assert shown[carets.index("^") : carets.rindex("^") + 1] == under


def test_wide_characters_take_two_columns():
    m = replace(report().measurement, snippets={"model.py": {3: "層 = nn.ReLU()"}})
    text = text_of(report(replace(FAULTY, location=location(3, column=5, end_line=3, end_column=14)), measurements=(m,)))
    assert caret_line(text) == "  | " + " " * 5 + "^" * 9


def test_an_expression_over_several_lines_is_underlined_to_the_end_of_its_first():
    site = location(40, column=9, end_line=42, end_column=10)
    carets = caret_line(text_of(report(replace(FAULTY, location=site))))
    assert carets.count("^") == len("for i in range(depth):")


@pytest.fixture
def sixty(monkeypatch):
    """A terminal of 60 columns."""
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("TERM", "xterm-256color")
    return Terminal()


def without_color(text):
    return re.sub(r"\x1b\[[0-9;]*m", "", text)


def test_a_narrow_terminal_keeps_excerpts_in_line_and_carets_in_view(sixty):
    long = {41: "            " + "very_long_name_of_a_container." * 3 + "append(Block(dim, norm=None))"}
    site = location(41, column=110, end_line=41, end_column=131)
    m = replace(report().measurement, snippets={"model.py": long})
    rows = without_color(text_of(report(replace(FAULTY, location=site), measurements=(m,)), sixty)).splitlines()
    excerpt = [row for row in rows if re.match(r"(41|  ) \|", row)]
    assert len(excerpt) == 4 and all(len(row) <= 60 for row in excerpt)
    shown, carets = excerpt[1], excerpt[2]
    assert "…" in shown and shown[carets.index("^") : carets.rindex("^") + 1] == "Block(dim, norm=None)"


def test_a_narrow_terminal_wraps_sentences_between_words(sixty):
    finding = replace(FAULTY, message="a sentence that is longer than sixty columns and goes on for a while after that")
    rows = without_color(text_of(report(finding), sixty)).splitlines()
    start = rows.index(next(r for r in rows if r.startswith("vanishing-gradient")))
    assert all(len(row) <= 60 for row in rows[start : start + 3])
    assert " ".join(rows[start : start + 3]).startswith(f"vanishing-gradient (GRAD001) error: {finding.message}")


def test_nothing_is_wrapped_in_a_file():
    assert max(len(row) for row in text_of(report(replace(FAULTY, message="word " * 60))).splitlines()) > 250


def test_colours_are_those_of_severity(sixty):
    text = text_of(report(FAULTY, PLAIN), sixty)
    assert "\x1b[1;31mvanishing-gradient (GRAD001)" in text and "\x1b[1;33munscaled-input (DATA001)" in text
    assert "\x1b[1;31m^^^" in text and "\x1b[1;34m  --> " in text and "\x1b[1;36mhelp:" in text


def test_no_colour_in_a_file_nor_with_no_color_nor_never(sixty, monkeypatch):
    assert "\x1b" not in text_of(report(FAULTY))
    assert "\x1b" not in text_of(report(FAULTY), Terminal(), "never")
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in text_of(report(FAULTY), Terminal())


def test_colour_in_a_file_when_forced(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;31m" in text_of(report(FAULTY), color="always")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b[1;31m" in text_of(report(FAULTY))


def test_always_wins_over_no_color(monkeypatch):
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b[1;31m" in text_of(report(FAULTY), color="always")


def test_the_profile_shows_the_ten_slowest_layers_and_the_total():
    slow = stack(30, lambda i: {"profile": profile(parameters=4160, flops=262144, forward_ms=float(i))})
    rows = text_of(report(measurements=(measurement(layers=slow),)), profile=True).splitlines()
    head = next(i for i, row in enumerate(rows) if row.startswith("layer "))
    assert rows[head + 1].split()[:3] == ["layers.29", "Linear", "32x64"]
    assert rows[head + 11] == "20 more layers: --show-all"
    assert rows[head + 12].startswith("total")
    everything = text_of(report(measurements=(measurement(layers=slow),)), profile=True, show_all=True)
    assert "layers.0 " in everything and "more layers" not in everything


def test_concise_has_a_line_per_headline_that_problem_matchers_read():
    rows = concise_lines(report(FAULTY, FOLLOWS, PLAIN))
    assert rows[0] == "model.py:41:32: vanishing-gradient (GRAD001) gradient vanishes in 23 of 100 layers"
    assert re.fullmatch(r"(.+):(\d+):(\d+): (\S+) (.*)", rows[0])
    assert rows[1] == "model.py:1:1: unscaled-input (DATA001) input [bold]x[/bold] is 300 times too large"
    assert rows[2].startswith("Found 1 error, 1 warning and 1 consequence in 100 layers") and len(rows) == 3
