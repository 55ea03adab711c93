"""The healthy zoo of benchmarks/: its members train, and its runner counts what scans say."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"

# One of each way to say what the loss is: loss function, training step, an output that brings it.
QUICK = ["mlp", "mlp-zero-head", "lora", "mixture-of-experts", "siamese-triplets", "rnn", "sparse-embedding-bag", "hf-electra", "hf-llama"]


@pytest.fixture(scope="module")
def zoo() -> ModuleType:
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import zoo
    finally:
        sys.path.remove(str(BENCHMARKS))
    return zoo


def test_the_zoo_is_large(zoo: ModuleType) -> None:
    assert len(zoo.ZOO) >= 150
    assert not set(zoo.ZOO) & set(zoo.DOUBTFUL)


@pytest.mark.parametrize("name", QUICK)
def test_a_member_learns(zoo: ModuleType, name: str) -> None:
    case = zoo.build(name, seed=0)

    def loss() -> float:
        with torch.no_grad():
            return sum(case.step(batch).item() for batch in case.batches)

    before = loss()
    for step in range(20):
        case.optimizer.zero_grad()
        case.step(case.batches[step % len(case.batches)]).backward()
        case.optimizer.step()
    assert loss() < 0.97 * before


def test_a_member_is_the_same_for_the_same_seed(zoo: ModuleType) -> None:
    first, again, other = (zoo.build("mlp", seed) for seed in (0, 0, 1))
    assert torch.equal(first.batches[0][0], again.batches[0][0])
    assert torch.equal(first.model[0].weight, again.model[0].weight)
    assert not torch.equal(first.model[0].weight, other.model[0].weight)


def test_without_signal_the_inputs_do_not_know_their_class(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def spread_of_class_means() -> float:
        torch.manual_seed(0)
        inputs, target = (torch.cat(part) for part in zip(*zoo.zoo_case.vectors(samples=500), strict=True))
        return torch.stack([inputs[target == label].mean(0) for label in range(10)]).std().item()

    assert spread_of_class_means() > 0.4
    monkeypatch.setattr(zoo.zoo_case, "signal", 0.0)
    assert spread_of_class_means() < 0.1


def test_the_summary_counts_models_not_findings(zoo: ModuleType) -> None:
    fine = [zoo.Outcome(f"fine{i}") for i in range(19)]
    lines, healthy = zoo.summary([*fine, zoo.Outcome("warned", warning=["INIT001", "INIT001", "ACT002"])])
    assert healthy
    assert "20 models" in lines[0]
    assert "1 with a warning (1 allowed)" in lines[0]
    assert "INIT001 1" in lines[1]


@pytest.mark.parametrize("bad", [{"error": ["GRAD001"]}, {"crash": "ValueError: no"}, {"crashed_rules": ["ACT001 (KeyError)"]}])
def test_an_error_or_a_crash_fails_the_zoo(zoo: ModuleType, bad: dict[str, object]) -> None:
    assert not zoo.summary([*(zoo.Outcome(f"fine{i}") for i in range(19)), zoo.Outcome("bad", **bad)])[1]


def test_too_many_warnings_fail_the_zoo(zoo: ModuleType) -> None:
    warned = [zoo.Outcome(f"warned{i}", warning=["INIT001"]) for i in range(2)]
    assert not zoo.summary([*(zoo.Outcome(f"fine{i}") for i in range(18)), *warned])[1]


def test_a_crash_is_the_models_own_outcome(zoo: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ValueError("no such width")

    monkeypatch.setitem(zoo.ZOO, "broken", broken)
    assert "ValueError: no such width" in zoo.scan("broken", 0, None).crash
