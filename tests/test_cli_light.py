"""`gradcheck --help`, `rule` and `report` are quick and import no torch; and the checks that say so can fail."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from gradcheck.report.outputs import FORMATS
from gradcheck.saved_run import dumps
from gradcheck.types.report import Report
from tests.literals import measurement

ROOT = Path(__file__).parent.parent
HEAVY = ("torch", "numpy")
# Calls of functions stand for time, since they are the same on a busy machine: about a million of them, imports included, are a second.
CALLS = 200_000
COUNTING = """import sys
calls = 0
def count(frame, event, argument):
    global calls
    calls += event in ("call", "c_call")
sys.setprofile(count)
try:
    {code}
except SystemExit:
    pass
finally:
    sys.setprofile(None)
    print(calls, file=sys.stderr)
"""


def modules_after(code, cwd=ROOT):
    """Top-level modules that are imported after the code has run in a fresh interpreter."""
    probe = f"import sys\ntry:\n    {code}\nfinally:\n    print(*{{m.partition('.')[0] for m in sys.modules}}, file=sys.stderr)"
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", probe], cwd=cwd, env=env, capture_output=True, text=True)
    assert "Traceback" not in done.stderr, done.stderr
    return set(done.stderr.split())


def command(*words):
    return f"sys.argv = ['gradcheck', *{list(words)!r}]; from gradcheck.cli.main import main; main()"


def calls_of(code):
    """The number of functions that a fresh interpreter calls while it runs the code."""
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", COUNTING.format(code=code)], cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return int(done.stderr)


def heavy_among(modules):
    return sorted(modules.intersection(HEAVY))


LIGHT = [
    ("--help",),
    ("--version",),
    ("rule", "vanishing-gradient"),
    ("rule", "GRAD001"),
    ("rules",),
    ("scan", "--help"),
    ("trial", "--help"),
]


@pytest.mark.parametrize("words", LIGHT)
def test_light_commands_import_no_torch(words):
    assert heavy_among(modules_after(command(*words))) == []


def test_importing_gradcheck_imports_no_torch_and_its_records_neither():
    assert heavy_among(modules_after("import gradcheck; gradcheck.Report, gradcheck.Finding, gradcheck.TargetError")) == []


def test_judging_a_saved_run_again_imports_no_torch(tmp_path):
    (tmp_path / "run.json").write_text(dumps(Report("model.py", (), (), (measurement(),))))
    outputs = [word for name in FORMATS for word in ("--output", f"{name}:{tmp_path / name}")]
    assert heavy_among(modules_after(command("report", "run.json", "--exit-zero", *outputs), tmp_path)) == []
    assert all((tmp_path / name).is_file() for name in FORMATS)
    assert heavy_among(modules_after(command("diff", "run.json", "run.json"), tmp_path)) == []


def test_the_check_for_heavy_imports_can_fail():
    assert heavy_among(modules_after("import numpy")) == ["numpy"]


@pytest.mark.parametrize("words", [("--help",), ("rule", "vanishing-gradient"), ("--version",)])
def test_quick_commands_call_few_functions(words):
    assert calls_of(command(*words)) < CALLS


def test_the_check_of_calls_can_fail():
    assert calls_of("import torch") > CALLS


def run(*words):
    return subprocess.run([sys.executable, "-m", "gradcheck", *words], cwd=ROOT, capture_output=True, text=True)


def test_a_rule_is_explained_by_name_and_by_code():
    by_name, by_code = run("rule", "vanishing-gradient"), run("rule", "grad001", "--output-format", "text")
    assert by_name.returncode == by_code.returncode == 0
    assert by_name.stdout == by_code.stdout
    assert by_name.stdout.startswith("# vanishing-gradient (GRAD001)\n\nSeverity: up to error.")
    for heading in ("## What it finds", "## When to ignore it", "## Settings"):
        assert heading in by_name.stdout


def test_a_rule_is_explained_as_json():
    import json

    facts = json.loads(run("rule", "unused-ignore", "--output-format", "json").stdout)
    assert (facts["code"], facts["up_to"]) == ("META001", "info") and facts["page"].startswith(facts["summary"])


def test_an_unknown_rule_exits_2_with_a_suggestion():
    done = run("rule", "vanishing-gradiant")
    assert done.returncode == 2 and not done.stdout
    assert "unknown rule or family 'vanishing-gradiant'" in done.stderr and 'did you mean "vanishing-gradient"' in done.stderr


def test_rules_are_listed_a_line_each():
    rows = run("rules", "--select", "META001,GRAD001").stdout.splitlines()
    assert [row.split()[:2] for row in rows] == [["GRAD001", "vanishing-gradient"], ["META001", "unused-ignore"]]


def test_help_without_arguments_and_version():
    assert "scan" in run().stdout + run().stderr
    from gradcheck import __version__

    assert run("--version").stdout == f"gradcheck {__version__}\n"
    assert f'version = "{__version__}"' in (ROOT / "pyproject.toml").read_text()


def test_public_functions_stay_functions_when_every_module_is_imported():
    code = (
        "import gradcheck, gradcheck.pipeline, gradcheck.repair.story, gradcheck.trials.run, gradcheck.live.watch;"
        "assert all(callable(getattr(gradcheck, name)) for name in ('scan', 'fix', 'trial', 'watch'))"
    )
    modules_after(code)


def test_an_unknown_public_name_is_an_attribute_error():
    import gradcheck

    with pytest.raises(AttributeError, match="no attribute 'scam'"):
        _ = gradcheck.scam
    assert set(gradcheck.__all__) >= {"scan", "Report", "Finding", "Measurement", "GradcheckError"}
