"""CONTRIBUTING.md is followed literally: its rule passes what every rule must pass, and does what it says."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from gradcheck.judge.registry import load_rules
from gradcheck.remedies import writers
from gradcheck.types.layers import Snapshot
from gradcheck.types.rule import NoVerdict, Rule
from gradcheck.workload.treated import Inapplicable
from tests.literals import layer, measurement, optimizer, stats
from tests.remedies.editing.sheets import HEAD, Sheet
from tests.remedies.patients import patient
from tests.rules import test_pages

CONTRIBUTING = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


def blocks() -> list[str]:
    """The files of the document: a rule, a remedy, its writer."""
    return re.findall(r"^````python\n(.+?)^````$", CONTRIBUTING.read_text(), re.DOTALL | re.MULTILINE)


def module(text: str, name: str) -> ModuleType:
    made = ModuleType(name)
    exec(compile(text, name, "exec"), made.__dict__)
    return made


@pytest.fixture
def rule(tmp_path: Path) -> Rule:
    """The rule of the document, loaded from a file as a project's own."""
    file = tmp_path / "constant_output.py"
    file.write_text(blocks()[0] + "\n\nRULES = (constant_output,)\n")
    return next(r for r in load_rules([file]) if r.code == "ACME001")


@pytest.mark.parametrize(
    "check",
    [
        test_pages.test_codes_and_names_have_their_form,
        test_pages.test_the_summary_is_one_sentence,
        test_pages.test_the_page_has_the_fixed_headings_in_order_and_none_is_empty,
        test_pages.test_example_and_cure_are_code_and_differ,
        test_pages.test_every_limit_has_a_source_and_stands_on_the_page,
        test_pages.test_consequences_are_rules_other_than_itself,
        test_pages.test_a_rule_says_what_it_needs_measured,
    ],
)
def test_the_page_is_as_that_of_every_rule(rule: Rule, check) -> None:
    check(rule)


@pytest.mark.parametrize(("spread", "fires"), [(0.9e-6, True), (1.1e-6, False)])
def test_it_fires_beyond_its_limit_only(rule: Rule, spread: float, fires: bool) -> None:
    m = measurement(layers=(layer(snapshots=tuple(Snapshot(step, stats(1.0, std=spread), stats(1e-3)) for step in (0, 1))),))
    limits = {name: limit.value for name, limit in rule.limits.items()}
    assert bool(rule.check(m, limits)) == fires
    assert isinstance(rule.check(measurement(layers=()), limits), NoVerdict)


def test_its_remedy_is_proposed_applied_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    remedy, writer = (module(text, f"block{i}") for i, text in enumerate(blocks()[1:]))
    (fix,) = remedy.nesterov_momentum.propose(None, measurement(optimizer=optimizer("SGD", momentum=0.9)))
    assert not remedy.nesterov_momentum.propose(None, measurement(optimizer=optimizer("SGD", momentum=0.0)))

    treated = patient(nn.Linear(16, 4))
    remedy.nesterov_momentum.apply(treated, fix)
    assert [group["nesterov"] for group in treated.optimizer.param_groups] == [True]
    with pytest.raises(Inapplicable, match="no momentum"):
        plain = nn.Linear(16, 4)
        remedy.nesterov_momentum.apply(patient(plain, optimizer=torch.optim.SGD(plain.parameters(), lr=0.1)), fix)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(writers, "WRITERS", writers.WRITERS | writer.WRITERS)
    call = "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)"
    sheet = Sheet(f"{HEAD}model = nn.Linear(2, 2)\noptimizer = {call}\n").optimizer(call, "SGD")
    assert "torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, nesterov=True)" in sheet.edited(fix)
