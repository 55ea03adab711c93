"""GitLab, reviewdog and JSON lines, each against its schema; and what all formats have in common."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import jsonschema
import pytest

from gradcheck.report.listings import gitlab, json_lines, rdjson
from gradcheck.report.outputs import FORMATS, Output, write_outputs
from tests.literals import location
from tests.report.reports import CLEAN, FAILED, FULL_OF_HOSTILITY, IN_PART, MIXED, VIEW, finding, report

EVERY = [(MIXED,), (CLEAN,), (FULL_OF_HOSTILITY,), (IN_PART, IN_PART, FAILED), (MIXED, MIXED, FULL_OF_HOSTILITY)]
ALLOWED = replace(VIEW, allow_partial=True)
TEXT = {"type": "string", "minLength": 1}
COUNT = {"type": "integer", "minimum": 1}


def exactly(required, **optional):
    return {"type": "object", "properties": {**required, **optional}, "required": list(required), "additionalProperties": False}


LINES = exactly({"begin": COUNT, "end": COUNT})
GITLAB_ENTRY = exactly(
    {
        "description": TEXT,
        "check_name": TEXT,
        "fingerprint": {"type": "string", "pattern": "^[0-9a-f]{32}$"},
        "severity": {"enum": ["info", "minor", "major", "critical", "blocker"]},
        "location": exactly({"path": {"type": "string", "pattern": r"^(?!\./)."}, "lines": LINES}),
    }
)
POSITION = exactly({"line": COUNT, "column": COUNT})
DIAGNOSTIC = exactly(
    {
        "message": TEXT,
        "location": exactly({"path": TEXT, "range": exactly({"start": POSITION}, end=POSITION)}),
        "severity": {"enum": ["ERROR", "WARNING", "INFO"]},
        "code": exactly({"value": TEXT}),
    }
)
RDJSON = exactly({"source": exactly({"name": TEXT}), "diagnostics": {"type": "array", "items": DIAGNOSTIC}})


@pytest.mark.parametrize("reports", EVERY)
def test_gitlab_entries_are_valid_and_no_two_share_a_fingerprint(reports):
    entries = json.loads(gitlab(reports, VIEW))
    jsonschema.validate(entries, {"type": "array", "items": GITLAB_ENTRY})
    assert len({e["fingerprint"] for e in entries}) == len(entries)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"description": "x"}], {"type": "array", "items": GITLAB_ENTRY})


def test_gitlab_severities():
    assert [e["severity"] for e in json.loads(gitlab([MIXED], VIEW))] == ["critical", "major", "info"]


@pytest.mark.parametrize("reports", EVERY)
def test_rdjson_is_valid(reports):
    data = json.loads(rdjson(reports, VIEW))
    jsonschema.validate(data, RDJSON)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data | {"more": 1}, RDJSON)


def test_rdjson_columns_count_bytes():
    """In `λ = 'α'; self.fc = nn.Linear(8, 8)` two letters before column 20 take two bytes each."""
    faulty = finding(location=location(3, end_column=35))
    place = json.loads(rdjson([report(faulty)], VIEW))["diagnostics"][0]["location"]
    assert place["range"] == {"start": {"line": 3, "column": 22}, "end": {"line": 3, "column": 37}}
    assert "λ = 'α'; self.fc = nn.Linear(8, 8)".encode()[21:36] == b"nn.Linear(8, 8)"
    unknown = json.loads(rdjson([report(finding(line=90))], VIEW))["diagnostics"][0]["location"]
    assert unknown["range"]["start"] == {"line": 90, "column": 20}


def test_json_lines_hold_every_finding():
    rows = [json.loads(line) for line in json_lines([MIXED, CLEAN], VIEW).splitlines()]
    assert [(row["target"], row["code"], row["cause"]) for row in rows] == [
        ("model.py", "DATA001", None),
        ("model.py", "ACT002", None),
        ("model.py", "GRAD001", None),
        ("model.py", "LOSS005", "GRAD001"),
    ]
    assert rows[2]["evidence"][0] | {"value": 0.5, "limit": 0.1} == rows[2]["evidence"][0]


def test_a_run_in_part_is_an_entry_of_its_own():
    (entry,) = json.loads(gitlab([IN_PART], VIEW))
    assert (entry["check_name"], entry["severity"]) == ("judged-in-part", "critical")
    assert "1 of 3 applicable rules looked" in entry["description"] and "help: watch it" in entry["description"]
    assert json.loads(gitlab([IN_PART], ALLOWED))[0]["severity"] == "major"
    (diagnostic,) = json.loads(rdjson([IN_PART], VIEW))["diagnostics"]
    assert (diagnostic["code"]["value"], diagnostic["severity"]) == ("judged-in-part", "ERROR")
    assert json.loads(rdjson([IN_PART], ALLOWED))["diagnostics"][0]["severity"] == "WARNING"
    (row,) = map(json.loads, json_lines([IN_PART], VIEW).splitlines())
    assert (row["name"], row["looked"], row["applicable"]) == ("judged-in-part", 1, 3)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_says_that_a_run_was_judged_in_part(name, tmp_path):
    def text(shown):
        write_outputs([shown], [Output(name, tmp_path / "out")], VIEW)
        return (tmp_path / "out").read_text().replace("_", "-")

    for shown in (IN_PART, FAILED):
        assert re.search(r"(?i)judged[ -]in[ -]part", text(shown)) or '"in-part":true' in text(shown)
        assert "could not repeat the training step" in text(shown) and "watch it" in text(shown)
        assert "No findings" not in text(shown) and "no findings" not in text(shown)
    assert not re.search(r"(?i)judged[ -]in[ -]part", text(CLEAN).partition("<style>")[0])


MACHINE = [name for name in FORMATS if name not in ("full", "html")]


@pytest.mark.parametrize("name", MACHINE)
def test_every_format_writes_hostile_reports_as_utf_8(name, tmp_path):
    path = tmp_path / "out"
    write_outputs([MIXED, FULL_OF_HOSTILITY], [Output(name, path)], VIEW)
    text = path.read_bytes().decode("utf-8")
    assert "\x1b" not in text and "\x00" not in text and text.endswith("\n")


@pytest.mark.parametrize("name", [n for n in MACHINE if n != "json"])
def test_formats_name_the_line_of_a_finding(name, tmp_path):
    path = tmp_path / "out"
    write_outputs([report(finding(line=None, location=location(4321)))], [Output(name, path)], VIEW)
    assert re.search(r"\b4321\b", path.read_text())
