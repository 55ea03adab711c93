"""What is found on the accelerator is what is found on the CPU, and so are the numbers."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_script
from gradcheck.types.measurement import Measurement
from gradcheck.types.report import Report
from tests.device import pretend, programs

DEVICE = pretend.NAME
OTHERS = ("environment", "seconds")  # fields that may differ
LOOSE = ("runs", "experiments", "derivatives")  # what depends on where rounding leads a training


def said(report: Report) -> list[tuple[Any, ...]]:
    return sorted((f.code, f.severity, tuple(f.layers), f.confirmed) for f in report.findings)


def lacking(report: Report) -> list[tuple[str, str]]:
    return [(n.what, n.why) for n in report.measurements[0].not_measured]


def numbers(value: Any, path: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a structure, with their places."""
    if isinstance(value, float):
        yield path, value
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from numbers(getattr(value, field.name), f"{path}.{field.name}")
    elif isinstance(value, (list, tuple)):
        for i, item in enumerate(value):
            yield from numbers(item, f"{path}[{i}]")


def compared(m: Measurement) -> dict[str, float]:
    found = dict(numbers(m.layers, "layers")) | dict(numbers(m.parameters, "parameters")) | dict(numbers(m.losses, "losses"))
    return found | dict(numbers((m.data, m.norms, m.pairs, m.streams), "facts"))


@pytest.mark.parametrize("name", programs.MODELS)
def test_a_model_is_judged_as_on_the_cpu(name: str) -> None:
    here, there = programs.scanned(name, "cpu"), programs.scanned(name, DEVICE)
    assert said(there) == said(here)
    assert lacking(there) == lacking(here)
    one, other = compared(here.measurements[0]), compared(there.measurements[0])
    assert one.keys() == other.keys()
    apart = {p: (v, other[p]) for p, v in one.items() if not math.isclose(v, other[p], rel_tol=1e-3, abs_tol=1e-6)}
    assert not apart
    dead = [(x.name, x.units, x.dead_units, x.dead_at_start) for x in here.measurements[0].layers]
    assert dead == [(x.name, x.units, x.dead_units, x.dead_at_start) for x in there.measurements[0].layers]


def test_a_model_without_float64_on_its_device_is_judged_too() -> None:
    """As on MPS. What needs float64 is said to be missing."""
    reports = {}
    for name in ("mlp", "images", "attending", "lstm"):
        pretend.absent.add(torch.float64)
        try:
            from gradcheck.workload.device import has_float64

            has_float64.cache_clear()
            reports[name] = programs.scan(name, DEVICE)
        finally:
            pretend.absent.clear()
            has_float64.cache_clear()
    for name, there in reports.items():
        here = programs.scanned(name, "cpu")
        assert said(there) == said(here)
        more = set(lacking(there)) - set(lacking(here))
        assert {what for what, _ in more} <= {"derivatives"}
        one, other = compared(here.measurements[0]), compared(there.measurements[0])
        assert {p for p, v in one.items() if not math.isclose(v, other[p], rel_tol=1e-3, abs_tol=1e-6)} == set()


@pytest.mark.parametrize("name", programs.SCRIPTS)
def test_a_script_is_judged_as_on_the_cpu(name: str, tmp_path: Path) -> None:
    reports = []
    for device in ("cpu", DEVICE):
        path = tmp_path / f"{device}.py"
        path.write_text(programs.script(name, device))
        reports += scan_script(ScriptSpec(str(path)), Settings(budget=600, steps=12))
    here, there = reports
    assert said(there) == said(here)
    assert lacking(there) == lacking(here)
    assert [(r.code, r.status) for r in there.rules] == [(r.code, r.status) for r in here.rules]
    assert len(there.measurements[0].layers) == len(here.measurements[0].layers) > 0
