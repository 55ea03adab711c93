"""The training scripts of benchmarks/: their headers and variants, the runner's arithmetic, and a few of them scanned."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.judge.registry import builtin_rules
from gradcheck.types.report import Report

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
QUICK = ["mlp_regression", "gan_ring"]  # no extra library, a second each
# Faults that no rule looks for yet: the faulty state has its code in the catalogue already.
WITHOUT_RULE: set[str] = set()


def _import(name: str) -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        return __import__(name)
    finally:
        sys.path.remove(str(BENCHMARKS))


scripts = _import("scripts")
scripts_case = _import("scripts_case")
CASES = {case.name: case for case in scripts_case.cases()}
every_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES)


@every_case
def test_both_variants_are_programs_and_differ(case: object) -> None:
    for variant in scripts.VARIANTS:
        compile(case.source(variant), case.file, "exec")
    assert case.healthy != case.faulty
    assert "# healthy:" not in case.healthy


@every_case
def test_a_fault_has_known_codes_and_needed_libraries_are_pinned(case: object) -> None:
    assert set(case.codes) <= {rule.code for rule in builtin_rules()} | WITHOUT_RULE
    pinned = {line.partition("==")[0].lower().replace("_", "-") for line in scripts.REQUIREMENTS.read_text().splitlines()}
    assert set(case.needs) <= pinned


def test_a_fault_that_has_a_rule_by_now_is_not_excused() -> None:
    assert not WITHOUT_RULE & {rule.code for rule in builtin_rules()}


def test_the_benchmark_is_large() -> None:
    assert len(CASES) >= 40
    assert len({code for case in CASES.values() for code in case.codes}) >= 25


SCRIPT = """# A title.
# healthy: loss < 0.5
# fault: twice as fast
# codes: OPT001
# at: lr = | step(
# - lr = 1
# + lr = 2

lr = 1
step(lr)
"""


def case_of(text: str, folder: Path) -> object:
    path = folder / "name.py"
    path.write_text(text)
    return scripts_case.read(path)


def test_a_header_is_taken_off_and_its_fault_put_in(tmp_path: Path) -> None:
    case = case_of(SCRIPT, tmp_path)
    assert (case.title, case.healthy, case.faulty, case.lines) == ("A title.", "lr = 1\nstep(lr)\n", "lr = 2\nstep(lr)\n", (1, 2))
    assert case.scan_arguments() == ["name.py"]
    assert case.plain_command("python") == ["python", "name.py"]


@pytest.mark.parametrize(
    ("run", "scanned", "plain"),
    [
        ("{script} -- fit --n 3", ["name.py", "--", "fit", "--n", "3"], ["PY", "name.py", "fit", "--n", "3"]),
        ("-- python -m {module} --n 3", ["--", "python", "-m", "name", "--n", "3"], ["PY", "-m", "name", "--n", "3"]),
        ("-- accelerate launch {script}", ["--", "accelerate", "launch", "name.py"], ["accelerate", "launch", "name.py"]),
        ("{notebook}", ["name.ipynb"], ["PY", "name.py"]),
    ],
)
def test_how_a_script_is_started(tmp_path: Path, run: str, scanned: list[str], plain: list[str]) -> None:
    case = case_of(SCRIPT.replace("# fault", f"# run: {run}\n# fault", 1), tmp_path)
    assert case.scan_arguments() == scanned
    assert case.plain_command("PY") == plain


@pytest.mark.parametrize("change", [("# - lr = 1", "# - lr = 3"), ("step(lr)\n", "lr = 1\n"), ("# at: lr = | step(", "# at: nowhere")])
def test_a_header_that_does_not_fit_is_refused(tmp_path: Path, change: tuple[str, str]) -> None:
    with pytest.raises(ValueError, match="name"):
        case_of(SCRIPT.replace(*change), tmp_path)


def test_cells_become_a_notebook(tmp_path: Path) -> None:
    text = SCRIPT.replace("\n\nlr = 1\nstep", "\n# %%\nlr = 1\n# %%\nstep")
    case = case_of(text.replace("# fault", "# run: {notebook}\n# fault"), tmp_path)
    case.write("faulty", tmp_path)
    cells = json.loads((tmp_path / "name.ipynb").read_text())["cells"]
    assert [cell["source"] for cell in cells] == [["lr = 2"], ["step(lr)"]]
    assert case.line("faulty", {"line": 1, "end_line": None, "cell": 2}) == 4


def test_the_last_value_of_the_metric_counts() -> None:
    bound = scripts_case.Bound("loss", "<", 0.5)
    assert bound.value("loss 3.0 val_loss 9\nloss: 1e-2\n") == 0.01
    assert bound.met(0.4) and not bound.met(0.6) and not bound.met(None)
    assert not bound.met(bound.value("loss nan"))


def finding(code: str, line: int, severity: str = "error") -> dict[str, object]:
    return {"code": code, "severity": severity, "location": {"path": "/x/name.py", "line": line, "end_line": None}}


def test_a_fault_is_named_at_its_line_or_elsewhere(tmp_path: Path) -> None:
    case = case_of(SCRIPT.replace(" | step(", ""), tmp_path)
    assert scripts.named(case, [finding("OPT001", 2), finding("OPT001", 1)]) == "line"
    assert scripts.named(case, [finding("OPT001", 2)]) == "cause"
    assert scripts.named(case, [finding("OPT002", 1), finding("OPT001", 1, "info")]) == ""


def test_the_table_counts_scripts_and_goes_between_its_markers(tmp_path: Path) -> None:
    case = case_of(SCRIPT, tmp_path)
    healthy = scripts.Outcome("name", "healthy", "in full", 2.0, findings=[("warning", "LOSS003", 3, ""), ("info", "REG002", 3, "")])
    faulty = scripts.Outcome("name", "faulty", "in part", 3.0, named="line")
    text = scripts.table([case], [healthy, faulty])
    assert "| healthy | 1 | 1 | 0 | 0 | 0 | 0 | 1 |" in text
    assert "| name | in full / in part |  | LOSS003 | twice as fast (OPT001) | yes | 2.0 / 3.0 |" in text
    page = f"before\n{scripts.BEGIN}old\n{scripts.END}after\n"
    assert scripts.between_markers(page, text) == f"before\n{scripts.BEGIN}{text}{scripts.END}after\n"
    with pytest.raises(SystemExit):
        scripts.between_markers("no markers", text)


@pytest.fixture
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def scanned(case: object, variant: str, folder: Path) -> list[Report]:
    from gradcheck.pipeline import scan_script

    return scan_script(ScriptSpec(str(case.write(variant, folder)), (), quiet=True), Settings())


@pytest.mark.parametrize("name", QUICK)
def test_a_healthy_script_is_judged_in_full_and_without_complaint(name: str, tmp_path: Path, one_thread: None) -> None:
    reports = scanned(CASES[name], "healthy", tmp_path)
    assert not [f for r in reports for f in r.findings if f.severity != "info"]
    assert not any(r.coverage.in_part for r in reports)


@pytest.mark.parametrize("name", QUICK)
@pytest.mark.filterwarnings("ignore:Using a target size")
def test_a_fault_is_named_at_its_line(name: str, tmp_path: Path, one_thread: None) -> None:
    case = CASES[name]
    found = [f for r in scanned(case, "faulty", tmp_path) for f in r.findings if f.severity != "info" and f.code in case.codes]
    assert {f.location.line for f in found if f.location is not None} & set(case.lines)
