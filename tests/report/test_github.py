"""GitHub annotations: read back by the rules of the runner's command parser; and the step summary."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from gradcheck.errors import SavedRunError
from gradcheck.report import listings
from gradcheck.report.outputs import Output, write_outputs
from tests.literals import location
from tests.report.reports import CLEAN, FULL_OF_HOSTILITY, HOSTILE, IN_PART, MIXED, VIEW, finding, report


def commands(text):
    """(level, properties, message) of each command, unescaped as the runner does it."""
    found = []
    for line in text.splitlines():
        if match := re.fullmatch(r"::(\w+) ?(.*?)::(.*)", line):
            pairs = (pair.split("=", 1) for pair in match[2].split(","))
            found.append((match[1], {name: plain(value, properties=True) for name, value in pairs}, plain(match[3])))
    return found


def plain(text, properties=False):
    if properties:
        text = text.replace("%3A", ":").replace("%2C", ",")
    return text.replace("%0D", "\r").replace("%0A", "\n").replace("%25", "%")


def rendered(*reports, **view):
    return listings.github(reports, replace(VIEW, **view))


def test_levels_places_and_messages():
    error, warning, notice = commands(rendered(MIXED))
    assert [error[0], warning[0], notice[0]] == ["error", "warning", "notice"]
    place = {"file": "model.py", "line": "3", "endLine": "3", "col": "20", "endColumn": "39"}
    assert error[1] == {"title": "vanishing-gradient (GRAD001)"} | place
    assert error[2].splitlines()[0] == "GRAD001 is faulty" and "help: initialise it" in error[2]
    assert notice[1]["file"] == "model.py" and notice[1]["line"] == "1"


def test_several_lines_have_no_columns():
    ((_, properties, _),) = commands(rendered(report(finding(location=location(3, end_line=5)))))
    assert properties["endLine"] == "5" and "col" not in properties and "endColumn" not in properties


def test_hostile_text_makes_one_command_and_comes_back_whole():
    text = rendered(FULL_OF_HOSTILITY)
    assert len([line for line in text.splitlines() if line.startswith("::")]) == 1
    ((_, properties, message),) = commands(text)
    assert properties["file"] == 'mo"del <b>.py'
    assert "100% @someone\\x1b[31m" in message and "::error::" in message and "\x1b" not in text
    assert HOSTILE.split()[0] in message


def test_at_most_ten_of_a_level_most_severe_first_and_the_rest_is_named():
    many = [finding("ACT002", "warning", line=n) for n in range(1, 15)] + [finding(line=n) for n in range(20, 33)]
    text = rendered(report(*many))
    levels = [level for level, _, _ in commands(text)]
    assert levels == ["error"] * 10 + ["warning"] * 10
    assert text.splitlines()[-1].startswith("7 more not annotated")
    assert [line.split(":")[1] for line in text.splitlines() if line.startswith("model.py:3") and "GRAD001" in line] == ["30", "31", "32"]


def test_a_clean_report_has_no_command():
    assert commands(rendered(CLEAN)) == [] and "No findings" in rendered(CLEAN)


def test_a_run_in_part_is_an_annotation():
    ((level, properties, message),) = commands(rendered(IN_PART))
    assert (level, properties["title"], properties["file"]) == ("error", "judged-in-part model.py", "model.py")
    assert message.splitlines() == [
        "judged in part: 1 of 3 applicable rules looked",
        "why: could not repeat the training step",
        "help: watch it",
    ]
    assert commands(rendered(IN_PART, allow_partial=True))[0][0] == "warning"


@pytest.fixture
def summary(tmp_path, monkeypatch):
    path = tmp_path / "summary.md"
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(path))
    return path


def test_the_summary_is_added_to_what_is_there(summary, capsys):
    summary.write_text("before\n")
    write_outputs([MIXED], [Output("github")], VIEW)
    assert summary.read_text().startswith("before\n<!-- gradcheck -->\n### ❌ gradcheck: `model.py`")
    assert "::error title=" in capsys.readouterr().out


def test_only_the_github_format_writes_a_summary(summary, capsys):
    write_outputs([MIXED], [Output("concise")], VIEW)
    assert not summary.exists()


def test_the_summary_leaves_details_out_before_it_is_too_large(summary):
    findings = [finding(line=n, message="x" * 100_000) for n in range(1, 15)]
    listings.append_summary([report(*findings)])
    assert 0 < summary.stat().st_size < 1024 * 1024 and "<details>" not in summary.read_text()
    summary.write_text("x" * 1024 * 1024)
    listings.append_summary([report(*findings)])
    assert summary.stat().st_size == 1024 * 1024


def test_a_summary_that_cannot_be_written_is_one_clear_error(summary):
    summary.mkdir()
    with pytest.raises(SavedRunError, match="cannot write the step summary"):
        listings.append_summary([MIXED])
