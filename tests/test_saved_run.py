"""The saved run."""

from __future__ import annotations

import json
import math
import re
from dataclasses import replace

import pytest

from gradcheck.errors import SavedRunError
from gradcheck.files import write_text
from gradcheck.saved_run import dumps, dumps_all, load, load_all
from gradcheck.types.finding import Evidence, Finding, Remedy, RuleState
from gradcheck.types.location import Ignore
from gradcheck.types.report import Report
from tests.literals import layer, location, measurement, run, snapshots


def report(**overrides):
    faulty = Finding(
        "GRAD001",
        "vanishing-gradient",
        "error",
        "gradient vanishes",
        ("fc1",),
        location(detail=location(3, "site-packages/lib.py")),
        (Evidence("slope", math.nan, 0.5, spread=(1.0, math.inf)),),
        (Remedy("he-init", "initialise", "safe"),),
        "by the probe: it stalls",
        "ACT003",
    )
    ignores = (Ignore("model.py", 3, ("a",), 3),)
    m = measurement(probe=run([2.0, math.inf, -math.inf, math.nan]), ignores=ignores, snippets={"model.py": {3: "λ = 1"}})
    states = (RuleState("GRAD001", "vanishing-gradient", "finding"),)
    return Report(**{"target": "model.py", "findings": (faulty,), "rules": states, "measurements": (m,)} | overrides)


def same(a, b):
    """Equality to five digits in which NaN equals NaN."""
    rounded = [re.sub(r"\d+\.\d+(e-?\d+)?", lambda m: f"{float(m[0]):.5g}", repr(x)) for x in (a, b)]
    return rounded[0] == rounded[1]


def test_everything_survives_a_round_trip(tmp_path):
    path = tmp_path / "run.json"
    write_text(path, dumps(report()))
    assert same(load(path), report())


def test_nan_and_infinity_are_strings_so_that_the_text_is_json():
    data = json.loads(dumps(report()), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert data["measurements"][0]["probe"]["losses"] == [2.0, "Infinity", "-Infinity", "NaN"]
    assert data["findings"][0]["evidence"][0]["value"] == "NaN"
    assert data["schema_version"] == 1


def test_floats_have_six_significant_digits(tmp_path):
    saved = json.loads(dumps(report(seconds=1.23456789e-7)))
    assert saved["seconds"] == 1.23457e-07


def test_report_to_json_writes_and_load_reads(tmp_path):
    path = tmp_path / "run.json"
    text = report().to_json(path)
    assert path.read_text() == text and same(Report.load(path), report())
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"], "nothing else is left in the folder"


def test_several_reports_are_a_list(tmp_path):
    path = tmp_path / "run.json"
    write_text(path, dumps_all([report(), report(target="b.py")]))
    assert [r.target for r in load_all(path)] == ["model.py", "b.py"]
    with pytest.raises(SavedRunError, match="holds 2 reports"):
        load(path)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("", "is not JSON"),
        ("[1, 2", "is not JSON"),
        ("[]", "not a saved run"),
        ("{}", "no schema_version"),
        ('{"schema_version": "1"}', "no schema_version"),
        ('{"schema_version": 2}', "schema version 2; this gradcheck reads up to 1"),
        ('{"schema_version": 1, "target": "x"}', "findings: Field required"),
        ('{"schema_version": 1, "reports": [3]}', "not a saved run"),
    ],
)
def test_what_is_not_a_saved_run_is_one_clear_error(tmp_path, text, what):
    path = tmp_path / "run.json"
    path.write_text(text)
    with pytest.raises(SavedRunError) as e:
        load(path)
    assert what in e.value.message and "run.json" in e.value.message and e.value.hint


def test_a_wrong_value_is_named_with_its_place(tmp_path):
    data = json.loads(dumps(report()))
    data["measurements"][0]["steps"] = "many"
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    with pytest.raises(SavedRunError, match=r"measurements\.0\.steps"):
        load(path)


def test_fields_of_a_later_minor_version_are_ignored(tmp_path):
    data = json.loads(dumps(report()))
    data["scores"] = {"gradient": 1}
    path = tmp_path / "run.json"
    path.write_text(json.dumps(data))
    assert load(path).target == "model.py"


def test_missing_files_binary_files_and_unwritable_places_are_errors(tmp_path):
    with pytest.raises(SavedRunError, match="cannot read"):
        load(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SavedRunError, match="not JSON"):
        load(tmp_path / "binary")
    with pytest.raises(SavedRunError, match="cannot write"):
        write_text(tmp_path / "no" / "folder.json", "x")


def test_writing_through_a_link_keeps_the_link(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    write_text(tmp_path / "link.json", "new")
    assert (tmp_path / "link.json").is_symlink() and (tmp_path / "real.json").read_text() == "new"


def test_a_thousand_layers_are_written_quickly_and_read_back(tmp_path):
    many = tuple(layer(f"layers.{i}", snapshots=snapshots(steps=(0, 99))) for i in range(1000))
    big = report(measurements=(replace(measurement(), layers=many),))
    path = tmp_path / "run.json"
    write_text(path, dumps(big))
    assert path.stat().st_size < 2_000_000
    assert len(load(path).layers) == 1000
