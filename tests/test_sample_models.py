"""The sample models: twins differ by their illness only, faulty ones are found out, healthy ones are left in peace."""

from __future__ import annotations

import ast
import difflib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import pytest
import torch

from sample_models.catalogue import README, Sample, faulty_samples, healthy_classics, with_table

if TYPE_CHECKING:
    from gradcheck.types.report import Report

pytestmark = pytest.mark.filterwarnings("ignore:Using a target size")  # the illness of loss_domain

FAULTY = faulty_samples()
faulty = pytest.mark.parametrize("sample", FAULTY, ids=lambda s: s.path.stem)

# The rules of the first issue: each has at least one faulty sample.
RULES = {
    "GRAPH": (1, 2, 3, 4, 5, 7, 8),
    "GRAD": (1, 2, 3, 4, 5),
    "ACT": (1, 2, 3, 4, 5, 6),
    "INIT": (1, 2, 3, 4, 5, 6, 7, 8),
    "NORM": (1, 2, 3, 4, 5, 6, 7, 8),
    "LOSS": (1, 2, 3, 4, 5, 6),
    "NUM": (1, 2, 3, 4, 5),
    "OPT": (1, 2, 3, 4, 5, 6),
    "CLIP": (1, 2, 3),
    "REG": (1, 2, 3, 4, 5),
    "DATA": (1, 2, 3, 4, 5),
}


def code_lines(source: str) -> list[str]:
    """Source lines without the module's docstring."""
    docstring = ast.parse(source).body[0]
    return source.splitlines()[docstring.end_lineno :]


def changed_lines(left: str, right: str) -> tuple[int, int]:
    """How many code lines of `left` are gone, and how many of `right` are new."""
    difference = list(difflib.ndiff(code_lines(left), code_lines(right)))
    return sum(d.startswith("- ") for d in difference), sum(d.startswith("+ ") for d in difference)


def module_of(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"sample_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def training_loss(module: ModuleType, model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    if hasattr(module, "compute_loss"):
        return module.compute_loss(model, batch)
    *inputs, target = batch
    return module.loss_fn(model(*inputs), target)


def losses(path: Path, steps: int, seed: int = 0) -> list[float]:
    """Losses of a plain training loop over the file's own data, loss and optimizer."""
    torch.manual_seed(seed)
    module = module_of(path)
    model = module.build_model()
    optimizer = module.make_optimizer(model)
    values: list[float] = []
    while len(values) < steps:
        for batch in module.train_loader:
            loss = training_loss(module, model, batch)
            optimizer.zero_grad()
            loss.backward()
            if getattr(module, "max_grad_norm", None):
                torch.nn.utils.clip_grad_norm_(model.parameters(), module.max_grad_norm)
            optimizer.step()
            values.append(loss.item())
    return values[:steps]


def scan(path: Path) -> Report:
    from gradcheck.config.settings import Settings
    from gradcheck.loading.spec import TargetSpec
    from gradcheck.pipeline import scan_target

    return scan_target(TargetSpec(target=str(path)), Settings())


def complaints(report: Report) -> list[str]:
    found = [f"{f.severity} {f.name} ({f.code}): {f.message}" for f in report.findings if f.severity != "info"]
    return [*found, "judged in part"] if report.coverage.in_part else found


# Twins and their papers


@faulty
def test_twins_differ_by_one_line(sample: Sample) -> None:
    removed, added = changed_lines(sample.path.read_text(encoding="utf-8"), sample.twin.read_text(encoding="utf-8"))
    assert removed <= 1 and added <= 1 and removed + added >= 1


def test_the_difference_ignores_docstrings_and_counts_every_other_line() -> None:
    faulty, healthy = '"""Faulty.\n\nOf what."""\nlr = 10\nsteps = 1\n', '"""Healthy."""\nlr = 1\nsteps = 1\n'
    assert changed_lines(faulty, healthy) == (1, 1)
    assert changed_lines(faulty, healthy.replace("steps = 1", "steps = 2")) == (2, 2)
    assert changed_lines(faulty, healthy + "more = 1\n") == (1, 2)


def test_every_healthy_file_has_a_faulty_twin() -> None:
    assert {p.name for p in (README.parent / "healthy").glob("*.py")} == {s.path.name for s in FAULTY}


def test_every_rule_of_the_first_issue_has_a_sample() -> None:
    rules = {f"{family}{number:03}" for family, numbers in RULES.items() for number in numbers}
    assert rules <= {e.code for s in FAULTY for e in s.expected}


def test_expected_findings_carry_the_names_of_their_rules() -> None:
    from gradcheck.judge.registry import builtin_rules

    names = {rule.code: rule.name for rule in builtin_rules()}
    assert {(e.code, e.name) for s in FAULTY for e in s.expected} <= set(names.items())


def test_the_readme_shows_the_expectations() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == with_table(text), "run: python sample_models/catalogue.py"


# Training says the same


@faulty
def test_the_healthy_twin_learns(sample: Sample) -> None:
    curve = losses(sample.twin, steps=48)
    start, end = sum(curve[:4]) / 4, sum(curve[-8:]) / 8
    assert end < 0.75 * start


# What breaks training visibly within 48 steps; the others cost accuracy or leave parts of the net untrained.
STUCK = (
    "closing_bias",
    "collapsed_representation",
    "dead_units",
    "deep_sigmoid",
    "default_initialization",
    "exploding_gradient",
    "gradient_ascent",
    "gradient_through_time",
    "learning_rate_too_high",
    "learning_rate_too_low",
    "logits_into_nll_loss",
    "loss_domain",
    "loss_not_falling",
    "maximizing_optimizer",
    "non_finite",
    "non_finite_input",
    "singular_derivative",
    "softmax_over_one_unit",
    "vanishing_gradient",
)


@pytest.mark.parametrize("name", STUCK)
def test_the_faulty_sample_does_not_learn(name: str) -> None:
    curve = losses(README.parent / "faulty" / f"{name}.py", steps=48)
    start, end = sum(curve[:4]) / 4, sum(curve[-8:]) / 8
    learned = 0 <= end < 0.9 * start  # below zero: a cross entropy that is no cross entropy any more
    assert not learned


# A scan says it too (the slow part)


@faulty
def test_a_scan_finds_the_illness(sample: Sample) -> None:
    report = scan(sample.path)
    found = {(f.name, f.code, f.severity) for f in report.findings}
    assert {(e.name, e.code, e.severity) for e in sample.expected} <= found, complaints(report)
    assert sample.expected[0].code in {f.code for f in report.headlines}, complaints(report)


@faulty
def test_a_scan_leaves_the_healthy_twin_in_peace(sample: Sample) -> None:
    assert complaints(scan(sample.twin)) == []


@pytest.mark.parametrize("path", healthy_classics(), ids=lambda p: p.stem)
def test_a_scan_leaves_the_classics_in_peace(path: Path) -> None:
    if path.stem == "digits":
        pytest.importorskip("sklearn")
    assert complaints(scan(path)) == []


def test_scanning_writes_no_file_beside_the_samples() -> None:
    folder = FAULTY[0].path.parent
    before = sorted(folder.rglob("*"))
    scan(FAULTY[0].path)
    assert sorted(folder.rglob("*")) == before
