"""Imports point one way: cli -> scan -> report, judge -> measure, target -> nouns. Rules and what judges need no torch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

TENSORS = ("torch", "numpy")
MEASURING = ("gradcheck.measure", "gradcheck.loading", "gradcheck.capture", "gradcheck.live.loop_monitor")
JUDGING = ("gradcheck.judge", "gradcheck.rules")
SHOWING = ("gradcheck.report", "gradcheck.scan", "gradcheck.cli.main", "gradcheck.cli.app", "gradcheck.cli.exit")

# Module or package -> what it must not import, at any depth and in any function.
FORBIDDEN: dict[str, tuple[str, ...]] = {
    "gradcheck.types": (*TENSORS, "gradcheck"),
    "gradcheck.errors": (*TENSORS, *MEASURING, *JUDGING, *SHOWING),
    "gradcheck.analysis.convergence": (*TENSORS, *MEASURING, *JUDGING, *SHOWING),
    "gradcheck.config.settings": (*TENSORS, *MEASURING, "gradcheck.report", "gradcheck.cli.main"),
    "gradcheck.rules": (*TENSORS, *MEASURING, *SHOWING),
    "gradcheck.judge": (*TENSORS, *MEASURING, *SHOWING),
    "gradcheck.report": (*TENSORS, *MEASURING, "gradcheck.scan", "gradcheck.cli.main"),
    "gradcheck.capture": (*JUDGING, *SHOWING),
    "gradcheck.live": ("gradcheck.scan", "gradcheck.cli.main", "gradcheck.cli.app", "gradcheck.cli.exit"),
    "gradcheck.live.command": TENSORS,
    "gradcheck.live.parent": TENSORS,
    "gradcheck.live.launch": TENSORS,
    "gradcheck.capture.program": TENSORS,
    "gradcheck.workload.notebook": TENSORS,
    "gradcheck.rank": (*TENSORS, "gradcheck"),
    "gradcheck.live.screen": TENSORS,
    "gradcheck.measure": (*JUDGING, *SHOWING),
    "gradcheck.loading": (*JUDGING, *SHOWING),
    "gradcheck.remedies": ("gradcheck.rules", *SHOWING),
    "gradcheck.remedies.editing": (*TENSORS, *MEASURING, *JUDGING),
    "gradcheck.repair": (
        "gradcheck.rules",
        "gradcheck.fix",
        "gradcheck.report.console",
        "gradcheck.cli.main",
        "gradcheck.cli.app",
        "gradcheck.cli.exit",
    ),
    "gradcheck.fix": ("gradcheck.cli.main", "gradcheck.cli.app", "gradcheck.cli.exit"),
    "gradcheck.cli.fix": (*TENSORS, "gradcheck.cli.main"),
    "gradcheck.trial": (
        "gradcheck.rules",
        "gradcheck.fix",
        "gradcheck.report.console",
        "gradcheck.cli.main",
        "gradcheck.cli.app",
        "gradcheck.cli.exit",
    ),
    "gradcheck.trials.options": (*TENSORS, *MEASURING, *JUDGING, *SHOWING),
    "gradcheck.cli.trial": (*TENSORS, "gradcheck.cli.main"),
    "gradcheck.scan": ("gradcheck.cli.main", "gradcheck.cli.app", "gradcheck.cli.exit"),
    "gradcheck.cli.exit": (*TENSORS, "gradcheck.cli.main", "gradcheck.cli.app"),
    "gradcheck.cli.app": (*TENSORS, "gradcheck.cli.main"),
    "gradcheck.cli.jobs": (*TENSORS, "gradcheck.cli.main", "gradcheck.cli.app"),
    "gradcheck.cli.program": (*TENSORS, "gradcheck.cli.main", "gradcheck.cli.app"),
    "gradcheck.cli.project": (*TENSORS, "gradcheck.cli.main"),
    "gradcheck.cli.gate": (*TENSORS, *MEASURING, "gradcheck.scan", "gradcheck.cli.main", "gradcheck.cli.app"),
    "gradcheck.cli.init": (*TENSORS, *MEASURING, "gradcheck.scan", "gradcheck.cli.main", "gradcheck.cli.app"),
    "gradcheck.integrations": ("gradcheck.rules", "gradcheck.cli.main", "gradcheck.cli.app", "gradcheck.cli.exit"),
    "gradcheck.integrations.pytest_plugin": (*TENSORS, *MEASURING, "gradcheck.cli.main", "gradcheck.cli.app"),
    "gradcheck.cli.main": TENSORS,
}
# What is allowed all the same: Report.to_json and Report.load, conveniences that import the writer when they are called.
ALLOWED = {
    ("gradcheck.types.report", "gradcheck.report.json"),
    ("gradcheck.types.report", "gradcheck.report.html"),
    ("gradcheck.types.trial", "gradcheck.report.json"),
}


def within(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def imported_names(source: str, module: str, is_package: bool = False) -> Iterator[tuple[int, str]]:
    """Line and absolute dotted name of everything that `source` imports; `from a import b` gives a.b."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = module.split(".")
                parts = parts[: len(parts) - node.level + is_package]
                base = ".".join([*parts, base] if base else parts)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)


def violations(source: str, module: str, is_package: bool = False) -> list[str]:
    """Imports of `module` that go against FORBIDDEN, as `module:line imports name`."""
    bad = []
    for package, forbidden in FORBIDDEN.items():
        if not within(module, package):
            continue
        for line, name in imported_names(source, module, is_package):
            allowed = within(name, package) or any(module == where and within(name, what) for where, what in ALLOWED)
            if not allowed and any(within(name, other) for other in forbidden):
                bad.append(f"{module}:{line} imports {name}")
    return bad


def modules() -> Iterator[tuple[str, Path]]:
    """Dotted name and file of every module of the package, the rules under their served name."""
    for folder, prefix in ((ROOT / "gradcheck", "gradcheck"), (ROOT / "rules", "gradcheck.rules")):
        for path in sorted(folder.rglob("*.py")):
            if (folder / "rules") not in path.parents:
                parts = path.relative_to(folder).with_suffix("").parts
                yield ".".join([prefix, *(part for part in parts if part != "__init__")]), path


def test_imports_point_one_way() -> None:
    found = [bad for name, path in modules() for bad in violations(path.read_text(), name, path.name == "__init__.py")]
    assert not found, "\n".join(found)


def test_the_arrows_are_of_packages_that_exist() -> None:
    names = {name for name, _ in modules()}
    for package in FORBIDDEN:
        assert any(within(name, package) for name in names), f"FORBIDDEN names {package}, which does not exist"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gradcheck.types.report", "from gradcheck.errors import GradcheckError"),
        ("gradcheck.rules.gradient", "import torch.nn as nn"),
        ("gradcheck.rules.gradient", "def check(m):\n    from numpy import median"),
        ("gradcheck.judge.judge", "from gradcheck import measure"),
        ("gradcheck.judge.judge", "from ..target import workload"),
        ("gradcheck.analysis.convergence", "from gradcheck.workload.workload import Workload"),
        ("gradcheck.report.console", "if TYPE_CHECKING:\n    import torch"),
        ("gradcheck.instrument.activation_recorder", "from gradcheck.types.rule import Rule"),
        ("gradcheck.loading.load", "import gradcheck.cli.main"),
    ],
)
def test_the_check_catches_a_violation(module: str, source: str) -> None:
    assert violations(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("gradcheck.types.report", "from gradcheck.types.location import Location"),
        ("gradcheck.rules.gradient", "from gradcheck.analysis.wording import number\nfrom gradcheck.types.rule import rule"),
        ("gradcheck.instrument.activation_recorder", "import torch\nfrom gradcheck.types.measurement import Layer"),
        ("gradcheck.judge.judge", "import numpylike, torchmetrics_like"),
    ],
)
def test_the_check_lets_good_imports_pass(module: str, source: str) -> None:
    assert not violations(source, module)
