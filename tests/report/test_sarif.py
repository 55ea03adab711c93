"""SARIF: a strict schema of what is written, and what GitHub asks for beyond the standard.

The whole OASIS schema was tried by hand; it is not in the repository.
"""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import jsonschema
import pytest

from gradcheck.report import sarif
from gradcheck.report.sarif import line_hash
from gradcheck.types.finding import Evidence
from tests.literals import location
from tests.report.reports import CLEAN, FAILED, FAULTY, FULL_OF_HOSTILITY, IN_PART, INFO, MIXED, VIEW, finding, report


def exactly(required: dict, **optional: object) -> dict:
    """A schema of an object with these members and no others."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required), "additionalProperties": False}


TEXT = {"type": "string", "minLength": 1}
SHORT = TEXT | {"maxLength": 1024}
COUNT = {"type": "integer", "minimum": 1}
LEVEL = {"enum": ["error", "warning", "note"]}
MESSAGE = exactly({"text": TEXT})
RULE = exactly(
    {
        "id": TEXT,
        "name": TEXT | {"maxLength": 255},
        "shortDescription": exactly({"text": SHORT}),
        "fullDescription": exactly({"text": SHORT}),
    },
    help=exactly({"text": TEXT, "markdown": TEXT}),
    defaultConfiguration=exactly({"level": LEVEL}),
    properties=exactly(
        {"tags": {"type": "array", "items": TEXT, "maxItems": 10}, "problem.severity": {"enum": ["error", "warning", "recommendation"]}}
    ),
)
PLACE = exactly(
    {
        "artifactLocation": exactly({"uri": {"type": "string", "pattern": r"^[A-Za-z0-9%/._:~-]+$"}}, uriBaseId={"const": "%SRCROOT%"}),
        "region": exactly({"startLine": COUNT, "startColumn": COUNT}, endLine=COUNT, endColumn=COUNT),
    }
)
RESULT = exactly(
    {
        "ruleId": TEXT,
        "ruleIndex": {"type": "integer", "minimum": 0},
        "level": LEVEL,
        "message": MESSAGE,
        "locations": {"type": "array", "minItems": 1, "maxItems": 1, "items": exactly({"physicalLocation": PLACE})},
        "partialFingerprints": exactly(
            {"gradcheck/v1": {"type": "string", "pattern": "^[0-9a-f]{32}$"}},
            primaryLocationLineHash={"type": "string", "pattern": "^[0-9a-f]{1,16}:[1-9][0-9]*$"},
        ),
        "properties": {"type": "object"},
    }
)
NOTIFICATION = exactly(
    {"level": LEVEL, "message": MESSAGE},
    descriptor=exactly({"id": TEXT}),
    locations={"type": "array", "minItems": 1, "items": exactly({"physicalLocation": PLACE})},
    properties={"type": "object"},
)
RUN = exactly(
    {
        "tool": exactly(
            {"driver": exactly({"name": TEXT, "version": TEXT, "semanticVersion": TEXT, "rules": {"type": "array", "items": RULE}})}
        ),
        "automationDetails": exactly({"id": {"type": "string", "pattern": "/$"}}),
        "invocations": {
            "type": "array",
            "items": exactly(
                {"executionSuccessful": {"type": "boolean"}},
                toolExecutionNotifications={"type": "array", "minItems": 1, "items": NOTIFICATION},
            ),
        },
        "columnKind": {"const": "unicodeCodePoints"},
        "results": {"type": "array", "items": RESULT},
    }
)
SCHEMA = exactly({"$schema": TEXT, "version": {"const": "2.1.0"}, "runs": {"type": "array", "minItems": 1, "maxItems": 1, "items": RUN}})


def log(*reports, **view):
    text = sarif.render(reports, replace(VIEW, **view))
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))


def complaints(data):
    return [e.message for e in jsonschema.Draft7Validator(SCHEMA).iter_errors(data)]


@pytest.mark.parametrize("reports", [(MIXED,), (CLEAN,), (FULL_OF_HOSTILITY,), (IN_PART, FAILED), (MIXED, CLEAN, FULL_OF_HOSTILITY)])
def test_the_log_is_valid(reports):
    assert complaints(log(*reports)) == []


def test_the_schema_catches_mistakes():
    data = log(MIXED)
    for path, bad in [
        (("runs", 0, "columnKind"), "bytes"),
        (("runs", 0, "results", 0, "level"), "info"),
        (("more",), 1),
        (("version",), "2"),
    ]:
        broken = copy.deepcopy(data)
        place = broken
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = bad
        assert complaints(broken)


def test_results_are_headlines_with_what_follows_in_their_message():
    results = log(MIXED)["runs"][0]["results"]
    assert [r["ruleId"] for r in results] == ["GRAD001", "ACT002", "DATA001"]
    assert "follows: loss-not-falling (LOSS005)" in results[0]["message"]["text"]
    assert [r["level"] for r in results] == ["error", "warning", "note"]


def test_rules_have_their_pages_and_results_point_at_them():
    run = log(MIXED)["runs"][0]
    rules = run["tool"]["driver"]["rules"]
    assert [rules[r["ruleIndex"]]["id"] for r in run["results"]] == [r["ruleId"] for r in run["results"]]
    assert rules[0]["help"]["markdown"].startswith("# vanishing-gradient (GRAD001)")
    assert rules[0]["properties"]["tags"] == ["training", "gradients"]


def test_a_rule_of_a_file_that_is_not_here_has_no_page():
    (rule,) = log(report(finding("ACME001")))["runs"][0]["tool"]["driver"]["rules"]
    assert rule == {"id": "ACME001", "name": "acme001", "shortDescription": {"text": "acme001"}, "fullDescription": {"text": "acme001"}}


def test_crashed_rules_are_notifications():
    (invocation,) = log(MIXED)["runs"][0]["invocations"]
    assert "uninformative-features (DATA002) crashed: ZeroDivisionError" in invocation["toolExecutionNotifications"][0]["message"]["text"]


def test_a_run_in_part_is_a_notification_and_not_successful_unless_that_is_allowed():
    (invocation,) = log(IN_PART)["runs"][0]["invocations"]
    (note,) = invocation["toolExecutionNotifications"]
    assert invocation["executionSuccessful"] is False and (note["level"], note["descriptor"]["id"]) == ("error", "judged-in-part")
    assert "model.py: judged in part: 1 of 3 applicable rules looked\nwhy: could not repeat" in note["message"]["text"]
    assert note["properties"] == {"target": "model.py", "looked": 1, "applicable": 3, "silent": ["vanishing-gradient", "dead-units"]}
    (invocation,) = log(IN_PART, allow_partial=True)["runs"][0]["invocations"]
    assert invocation["executionSuccessful"] is True and invocation["toolExecutionNotifications"][0]["level"] == "warning"
    assert log(CLEAN)["runs"][0]["invocations"] == [{"executionSuccessful": True}]


def test_the_region_is_the_expression_and_its_end_is_exclusive():
    results = log(MIXED)["runs"][0]["results"]
    assert results[0]["locations"][0]["physicalLocation"]["region"] == {"startLine": 3, "startColumn": 20, "endLine": 3, "endColumn": 39}
    assert results[2]["locations"][0]["physicalLocation"]["region"] == {"startLine": 1, "startColumn": 1}


def test_the_line_hash_is_that_of_the_file_and_left_to_github_without_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "primaryLocationLineHash" not in log(MIXED)["runs"][0]["results"][0]["partialFingerprints"]
    text = "import torch\n\nself.fc = nn.Linear(8, 8)\n"
    (tmp_path / "model.py").write_text(text)
    prints = log(MIXED)["runs"][0]["results"][0]["partialFingerprints"]
    assert prints["primaryLocationLineHash"] == line_hash(text, 3)


def test_own_fingerprints_outlive_a_moved_line_and_differ_within_a_run():
    def prints(*findings):
        return [r["partialFingerprints"]["gradcheck/v1"] for r in log(report(*findings))["runs"][0]["results"]]

    assert prints(FAULTY) == prints(finding(line=90))
    assert len(set(prints(FAULTY, finding(line=90), INFO))) == 3
    assert prints(finding(layers=("body.0", "body.7"))) == prints(FAULTY) != prints(finding(layers=("head",)))


def test_paths_are_relative_to_the_repository(tmp_path, monkeypatch):
    (tmp_path / ".git").mkdir()
    (tmp_path / "models").mkdir()
    monkeypatch.chdir(tmp_path / "models")
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    place = log(MIXED)["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "models/model.py"


def test_numbers_that_json_has_not_are_left_out():
    faulty = finding(evidence=(Evidence("slope", float("nan"), 1.0), Evidence("size", float("inf"), 1.0), Evidence("share", 0.5, 0.1)))
    assert log(report(faulty))["runs"][0]["results"][0]["properties"]["measured"] == {"share": 0.5}


def test_a_place_outside_of_the_repository_is_a_file_uri(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("GITHUB_WORKSPACE", str(tmp_path / "here"))
    outside = str(tmp_path / "elsewhere.py")
    place = log(report(finding(location=location(path=outside))))["runs"][0]["results"][0]["locations"][0]["physicalLocation"]
    assert place["artifactLocation"] == {"uri": (tmp_path / "elsewhere.py").as_uri()}
