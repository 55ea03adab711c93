"""The run that is judged: the probe's, or the script's own."""

import math

import torch
from torch import nn

import gradcheck
from gradcheck.measure.probe import told_by
from gradcheck.types.training import Run

FALLS = [1.4 * 0.994**i for i in range(200)]
STAYS = [1.4 + 0.01 * math.sin(i) for i in range(300)]
RISES = [1.4 + 0.01 * i for i in range(300)]


def probe(losses: list[float], **given: object) -> Run:
    return Run("probe", tuple(losses), batches=32, ended="done", **given)  # type: ignore[arg-type]


def test_a_script_that_learns_where_the_same_steps_on_few_batches_do_not_is_believed() -> None:
    for losses in (STAYS, RISES):
        run = told_by(probe(losses), FALLS, 100, 1.4)
        assert (run.name, len(run.losses), run.batches) == ("the script's own steps", 200, 200)


def test_the_probe_is_believed_otherwise() -> None:
    late = [*FALLS[:200], *[0.42 + 0.05 * i for i in range(100)]]  # as the script so far: it diverges later
    cases = [
        (late, FALLS), (RISES, RISES[:200]), (STAYS, STAYS[:200]), (FALLS, RISES[:200]), (RISES, FALLS[:60]), (RISES, []),
        (RISES, [*FALLS[:199], math.nan]), (RISES, [*FALLS[:120], *FALLS[:40:-1]]),
    ]  # fmt: skip
    for losses, own in cases:
        assert told_by(probe(losses), own, 100, 1.4).name == "probe"
    assert told_by(probe(RISES, surrogate="a policy gradient"), FALLS, 100, 1.4).name == "probe"


class _Nodes(nn.Module):
    """Its activations are [units, nodes], and the nodes differ in number from call to call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head, self.calls = nn.Parameter(torch.randn(6, 8) * 0.3), nn.Linear(6, 3), 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        nodes = torch.relu(self.weight.mm(x[self.calls % 4 :].t())).t()
        return self.head(torch.cat([nodes, nodes[: len(x) - len(nodes)]]))


def test_an_axis_that_changes_its_length_holds_no_units() -> None:
    torch.manual_seed(0)
    x, model = torch.randn(64, 8), _Nodes()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    report = gradcheck.scan(model, [(x, x[:, :3].argmax(1))], loss=nn.functional.cross_entropy, optimizer=optimizer)
    assert all(f.severity != "error" for f in report.findings)
    assert report.measurements[0].probe.losses
