"""The commands: what they pass on, what they print where, and their exit codes. Measuring is replaced by literals."""

from __future__ import annotations

import json
import sys
from types import ModuleType

import pytest

from gradcheck.cli import main
from gradcheck.errors import TargetError
from gradcheck.judge.judge import judge
from gradcheck.types.report import Report
from tests.judge.rules import above, finding, rule_that
from tests.literals import location, measurement, run

RULES = (above(1.0, code="GRAD001", name="vanishing-gradient"), rule_that([finding("warning")], "ACT002", "dead-units"))


@pytest.fixture
def scanned(tmp_path, monkeypatch):
    """The (spec, settings) of each scan. The scans judge a literal measurement by RULES, in an empty working directory."""
    calls = []

    def scan_target(spec, settings, progress=None, started=None):
        calls.append((spec, settings))
        if spec.target == "missing.py":
            raise TargetError("no such file: missing.py", hint="check the path", location=location(61, column=16, scope="forward"))
        if spec.target == "interrupted.py":
            raise KeyboardInterrupt
        if spec.target == "exits.py":
            sys.exit("bye")
        if spec.target == "bug.py":
            raise ZeroDivisionError("oops")
        print("the user's model prints")
        m = measurement(target=spec.target, probe=run([2.3 if "faulty" in spec.target else 0.5, 0.1]))
        from gradcheck.judge.select import chosen

        findings, suppressed, states = judge([m], chosen(settings), settings)
        return Report(spec.target, findings, states, (m,), suppressed)

    module = ModuleType("gradcheck.pipeline")
    module.scan_target = scan_target
    monkeypatch.setitem(sys.modules, "gradcheck.pipeline", module)
    monkeypatch.setattr("gradcheck.judge.select.load_rules", lambda paths: RULES)
    monkeypatch.setattr("gradcheck.judge.registry.load_rules", lambda paths: RULES)
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.fixture
def gradcheck(capsys, monkeypatch):
    """Runs the command: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
        code = 0
        try:
            main.main()
        except SystemExit as e:
            code = e.code or 0
        out, err = capsys.readouterr()
        return code, out, err

    return call


def test_an_error_exits_1_and_a_warning_0(scanned, gradcheck):
    code, out, _ = gradcheck("scan", "faulty.py")
    assert code == 1 and "vanishing-gradient (GRAD001) error" in out
    code, out, _ = gradcheck("scan", "fine.py")
    assert code == 0 and "dead-units (ACT002) warning" in out


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("--fail-on", "warning"), 1),
        (("--fail-on", "never", "--max-warnings", "0"), 1),
        (("--max-warnings", "1"), 0),
        (("--fail-on", "info", "--ignore", "dead-units"), 0),
        (("--fail-on", "warning", "--exit-zero"), 0),
    ],
)
def test_the_exit_code_follows_the_flags(scanned, gradcheck, words, code):
    assert gradcheck("scan", "fine.py", *words)[0] == code


def test_flags_reach_the_scan(scanned, gradcheck):
    gradcheck(
        *("scan", "model.py:net", "--arg", "depth=3", "--arg", "name=a=b", "--data", "d.pt", "--val-data", "v.pt", "--loss", "mse"),
        *("--input", "float32[2,3]", "--input", "int64[4]", "--optimizer", "sgd", "--lr", "0.1", "--steps", "7", "--seeds", "2"),
        *(
            "--device",
            "cpu",
            "--dtype",
            "bf16",
            "--budget",
            "9",
            "--fast",
            "--profile",
            "--select",
            "GRAD,dead-units",
            "--extend-select",
            "ACT",
        ),
    )
    ((spec, settings),) = scanned
    assert (spec.target, spec.arguments, spec.data, spec.val_data) == ("model.py:net", {"depth": "3", "name": "a=b"}, "d.pt", "v.pt")
    assert (spec.inputs, spec.loss, spec.optimizer, spec.lr) == (("float32[2,3]", "int64[4]"), "mse", "sgd", 0.1)
    assert (settings.steps, settings.seeds, settings.device, settings.dtype, settings.budget) == (7, 2, "cpu", "bf16", 9.0)
    assert (spec.device, spec.dtype) == ("cpu", "bf16")
    assert settings.fast and settings.profile and settings.select == ("GRAD", "dead-units") and settings.extend_select == ("ACT",)


CONFIG = """
[tool.gradcheck]
fail-on = "warning"
[tool.gradcheck.targets.first]
model = "faulty.py"
steps = 5
[tool.gradcheck.targets.second]
model = "fine.py"
lr = 0.5
data = "d.pt"
"""


def test_without_a_target_the_configured_ones_are_scanned(scanned, gradcheck, tmp_path):
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    code, out, _ = gradcheck("scan")
    assert code == 1 and out.index("faulty.py\n") < out.index("fine.py\n")
    assert [(spec.target, settings.steps, spec.lr) for spec, settings in scanned] == [("faulty.py", 5, None), ("fine.py", 100, 0.5)]


def test_a_configured_target_is_named_and_flags_go_over_it(scanned, gradcheck, tmp_path):
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    gradcheck("scan", "second", "--lr", "0.1", "--steps", "9")
    ((spec, settings),) = scanned
    assert (spec.target, spec.lr, spec.data, settings.steps) == ("fine.py", 0.1, "d.pt", 9)


def test_isolated_ignores_the_configuration(scanned, gradcheck, tmp_path):
    (tmp_path / "pyproject.toml").write_text(CONFIG)
    assert gradcheck("scan", "fine.py")[0] == 1
    assert gradcheck("scan", "fine.py", "--isolated")[0] == 0


def test_no_target_at_all_says_what_to_do(scanned, gradcheck):
    code, out, err = gradcheck("scan")
    assert code == 2 and not out and err.startswith("error: no target") and "gradcheck scan model.py" in err


def test_an_unusable_target_exits_2_with_place_and_next_step(scanned, gradcheck):
    code, out, err = gradcheck("scan", "missing.py", "--output", "json")
    assert (code, out) == (2, "")
    assert err == "error: no such file: missing.py\n  --> model.py:61:16  in forward\nhelp: check the path\n"


def test_one_unusable_target_of_several_exits_2_and_the_others_are_reported(scanned, gradcheck):
    code, out, err = gradcheck("scan", "missing.py", "fine.py", "--fail-on", "never")
    assert code == 2 and "no such file" in err and "dead-units" in out


def test_interruption_exits_130(scanned, gradcheck):
    code, out, err = gradcheck("scan", "interrupted.py")
    assert (code, out, err) == (130, "", "interrupted\n")


def test_scanned_code_that_exits_is_an_error(scanned, gradcheck):
    code, _, err = gradcheck("scan", "exits.py")
    assert code == 2 and "sys.exit('bye')" in err and "__main__" in err


def test_an_internal_failure_asks_for_a_report_and_shows_the_traceback(scanned, gradcheck):
    code, out, err = gradcheck("scan", "bug.py")
    assert code == 2 and not out
    assert "Traceback" in err and "ZeroDivisionError: oops" in err and "please report it" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--select", "vanishing-gradeint"), 'did you mean "vanishing-gradient"'),
        (("--fail-on", "fatal"), "fail-on must be error, warning, info or never"),
        (("--output", "jsn"), 'did you mean "json"'),
        (("--output", "json", "--output", "concise"), "json and concise would both be written to stdout"),
        (("--output", "json:x", "--output", "full:x"), "two outputs would be written to x"),
        (("--output", "json:no/such/folder.json"), "no such folder"),
        (("--arg", "depth"), "--arg 'depth' is not KEY=VALUE"),
        (("--steps", "0"), "steps must be a whole number"),
        (("--steps", "many"), "--steps"),
        (("--color", "pink"), "--color must be"),
        (("--config", "fail-on = 3"), "fail-on must be"),
        (("--no-such-flag",), "No such option"),
    ],
)
def test_wrong_usage_exits_2_with_one_clear_message(scanned, gradcheck, words, message):
    code, out, err = gradcheck("scan", "fine.py", *words)
    assert code == 2 and not out and message in err and "Traceback" not in err


def test_results_go_to_stdout_and_what_the_model_prints_to_stderr(scanned, gradcheck):
    _, out, err = gradcheck("scan", "faulty.py", "--output", "json")
    assert json.loads(out)["target"] == "faulty.py"
    assert "the user's model prints" in err


def test_a_file_output_is_beside_the_text_and_is_the_only_file(scanned, gradcheck, tmp_path):
    _, out, _ = gradcheck("scan", "faulty.py", "--output", "json:run.json", "--output", "concise:run.txt")
    assert "vanishing-gradient (GRAD001) error" in out
    assert Report.load(tmp_path / "run.json").findings[0].code == "GRAD001"
    assert (tmp_path / "run.txt").read_text().startswith("faulty.py:1:1: vanishing-gradient (GRAD001) faulty")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run.json", "run.txt"]


def test_several_targets_make_one_json_document(scanned, gradcheck):
    _, out, _ = gradcheck("scan", "faulty.py", "fine.py", "--output", "json")
    data = json.loads(out)
    assert data["schema_version"] == 1 and [r["target"] for r in data["reports"]] == ["faulty.py", "fine.py"]


def test_a_saved_run_is_judged_again_by_other_settings(scanned, gradcheck, tmp_path):
    gradcheck("scan", "faulty.py", "--output", "json:run.json")
    assert gradcheck("report", "run.json")[0] == 1
    code, out, _ = gradcheck("report", "run.json", "--config", "rules.vanishing-gradient.start = 3.0")
    assert code == 0 and "GRAD001" not in out and "dead-units" in out
    code, out, _ = gradcheck("report", "run.json", "--select", "GRAD", "--output", "concise")
    assert code == 1 and "GRAD001" in out and "dead-units" not in out


def test_a_saved_run_of_several_targets_is_shown_whole(scanned, gradcheck):
    gradcheck("scan", "faulty.py", "fine.py", "--output", "json:run.json")
    code, out, _ = gradcheck("report", "run.json")
    assert code == 1 and "faulty.py\n" in out and "fine.py\n" in out


def test_a_saved_run_that_is_none_exits_2(scanned, gradcheck, tmp_path):
    (tmp_path / "run.json").write_text("{")
    code, out, err = gradcheck("report", "run.json")
    assert code == 2 and not out and "run.json is not JSON" in err and "help:" in err


def test_unknown_limits_are_said_before_anything_is_measured(scanned, gradcheck, tmp_path):
    (tmp_path / "pyproject.toml").write_text("[tool.gradcheck.rules.vanishing-gradient]\nstrat = 3\n")
    code, _, err = gradcheck("scan", "fine.py")
    assert code == 2 and "has no limit 'strat'" in err and 'did you mean "start"' in err


def test_the_progress_bar_names_the_phase_on_a_terminal_only(capsys, monkeypatch):
    from gradcheck.report.progress_bar import progress_bar

    with progress_bar("model.py") as progress:
        assert progress is None
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    with progress_bar("model.py", quiet=True) as progress:
        assert progress is None
    with progress_bar("model.py [x]") as progress:
        progress("probe training", 0.5)
    assert "model.py [x]: probe training" in capsys.readouterr().err
