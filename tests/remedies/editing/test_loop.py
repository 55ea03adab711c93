"""Edits of a training loop: the script is run, its loop is mended, and the edited script is run again. The edit is what is compared."""

from __future__ import annotations

import textwrap
from pathlib import Path

import pytest

from gradcheck.capture.spec import ScriptSpec
from gradcheck.config.settings import Settings
from gradcheck.repair.loop import Mended, mend
from gradcheck.repair.script_run import loops_judged, run_script
from gradcheck.repair.script_verification import Bench
from gradcheck.workload.process_state import untouched

HEAD = """
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

torch.manual_seed(0)
means = torch.randn(4, 8)
labels = torch.randint(4, (256,))
data = TensorDataset(means[labels] + torch.randn(256, 8), labels)
loader = DataLoader(data, batch_size=16, shuffle=True)
model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Dropout(0.1), nn.Linear(16, 4))
optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
"""


def mended(text: str) -> Mended:
    Path("train.py").write_text(HEAD + textwrap.dedent(text))
    spec, settings = ScriptSpec("train.py", steps=60, quiet=True), Settings()
    with untouched():
        seen = run_script(spec, lambda trainings: loops_judged(trainings, settings, ()))
        return mend(spec, seen, Bench(settings), lambda phase, fraction: None)


def edited(result: Mended) -> str:
    assert [o.status for _, o in result.outcomes if o.status != "kept"] == [], [o.reason for _, o in result.outcomes]
    (draft,) = result.drafts
    return draft.text.removeprefix(HEAD)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# Name -> (faulty loop, what is written). Lines that are equal in both are not looked at again.
LOOPS = {
    "never cleared, in a function": (
        """
        def train_step(x, y):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(4):
            for x, y in loader:
                train_step(x, y)
        """,
        """
        def train_step(x, y):
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            return loss

        for _ in range(4):
            for x, y in loader:
                train_step(x, y)
        """,
    ),
    "never cleared, accumulated": (
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
        """,
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
    ),
    "cleared between backward pass and step": (
        """
        for _ in range(4):
            for x, y in loader:
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.zero_grad()  # too early
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                optimizer.step()
        """,
    ),
    "cleared with each accumulated pass": (
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                optimizer.zero_grad()
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
        """,
        """
        for _ in range(8):
            for i, (x, y) in enumerate(loader, 1):
                (F.cross_entropy(model(x), y) / 2).backward()
                if i % 2 == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
    ),
    "the step forgotten, before a clearing": (
        """
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.zero_grad()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
                optimizer.zero_grad()
        """,
    ),
    "clipping before the backward pass": (
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                norm = nn.utils.clip_grad_norm_(
                    model.parameters(),
                    5.0,
                )
                loss.backward()
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                norm = nn.utils.clip_grad_norm_(
                    model.parameters(),
                    5.0,
                )
                optimizer.step()
        """,
    ),
    "clipping of a generator that is used up": (
        """
        weights = model.parameters()
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(weights, 5.0)
                optimizer.step()
        """,
        """
        weights = model.parameters()
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                nn.utils.clip_grad_norm_(model.parameters(), 5.0)
                optimizer.step()
        """,
    ),
    "a scaled loss, and a bare step": (
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                optimizer.step()
        """,
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
        """,
    ),
    "no update of the scaler": (
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
        """,
        """
        scaler = torch.amp.GradScaler("cpu")
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                scaler.scale(F.cross_entropy(model(x), y)).backward()
                scaler.step(optimizer)
                scaler.update()
        """,
    ),
    "a sum over accumulated passes, by a name": (
        """
        every = 4
        for _ in range(8):
            for i, (x, y) in enumerate(loader):
                F.cross_entropy(model(x), y).backward()
                if (i + 1) % every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
        """
        every = 4
        for _ in range(8):
            for i, (x, y) in enumerate(loader):
                (F.cross_entropy(model(x), y) / every).backward()
                if (i + 1) % every == 0:
                    optimizer.step()
                    optimizer.zero_grad()
        """,
    ),
    "an evaluation in a function of its own": (
        """
        def accuracy(net):
            net.eval()
            with torch.no_grad():
                return sum((net(x).argmax(1) == y).sum().item() for x, y in loader)

        for _ in range(4):
            for i, (x, y) in enumerate(loader):
                if i % 8 == 0:
                    accuracy(model)
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
        """
        def accuracy(net):
            net.eval()
            with torch.no_grad():
                return sum((net(x).argmax(1) == y).sum().item() for x, y in loader)

        for _ in range(4):
            for i, (x, y) in enumerate(loader):
                if i % 8 == 0:
                    accuracy(model)
                    model.train()
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
    ),
    "the first batch, taken before the loop": (
        """
        x, y = next(iter(loader))
        for _ in range(40):
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        """,
        """
        for _ in range(40):
            x, y = next(iter(loader))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
        """,
    ),
    "two illnesses at once": (
        """
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
        """,
        """
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            schedule.step()
        """,
    ),
    "a schedule over all batches, stepped by epochs": (
        """
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, epochs=4, steps_per_epoch=len(loader), div_factor=1000)
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            schedule.step()
        """,
        """
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.3, epochs=4, steps_per_epoch=len(loader), div_factor=1000)
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
                schedule.step()
        """,
    ),
    "cleared by a method that is named and not called": (
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                optimizer.zero_grad()
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
        """,
    ),
    "never cleared, updated by hand": (
        """
        net = nn.Linear(8, 4)
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(net(x), y).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
        """,
        """
        net = nn.Linear(8, 4)
        for _ in range(4):
            for x, y in loader:
                F.cross_entropy(net(x), y).backward()
                with torch.no_grad():
                    for p in net.parameters():
                        p -= 0.05 * p.grad
                        p.grad = None
        """,
    ),
    "a loss that is made again": (
        """
        for _ in range(4):
            for x, y in loader:
                loss = torch.tensor(F.cross_entropy(model(x), y).item(), requires_grad=True)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        """,
        """
        for _ in range(4):
            for x, y in loader:
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        """,
    ),
}


@pytest.mark.parametrize("name", LOOPS)
def test_the_loop_is_written_as_one_would_write_it(name: str) -> None:
    faulty, healthy = LOOPS[name]
    assert edited(mended(faulty)) == textwrap.dedent(healthy)
    assert Path("train.py").read_text() == HEAD + textwrap.dedent(faulty)
    assert [p.name for p in Path().iterdir()] == ["train.py"]


@pytest.mark.parametrize("name", ["never cleared, in a function", "two illnesses at once"])
def test_a_mended_loop_needs_nothing_more(name: str) -> None:
    assert mended(LOOPS[name][1]).outcomes == []


def test_two_networks_each_clear_their_own_gradients() -> None:
    text = """
    other = nn.Linear(8, 4)
    second = torch.optim.SGD(other.parameters(), lr=0.05)
    for _ in range(4):
        for x, y in loader:
            optimizer.zero_grad()
            F.cross_entropy(model(x) + other(x).detach(), y).backward()
            optimizer.step()
            F.cross_entropy(model(x).detach() + other(x), y).backward()
            second.step()
    """
    faulty = "        F.cross_entropy(model(x).detach()"
    healthy = textwrap.dedent(text).replace(faulty, "        second.zero_grad()\n" + faulty)
    assert edited(mended(text)) == healthy


def refused(text: str) -> str:
    """Why nothing was written."""
    result = mended(text)
    assert not result.drafts and [o.status for _, o in result.outcomes] == ["inapplicable"]
    return result.outcomes[0][1].reason


def test_a_schedule_without_epochs_is_left_to_the_user() -> None:
    reason = refused("""
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    batches = [b for _ in range(4) for b in loader]
    for x, y in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        schedule.step()
    """)
    assert "there is no loop over epochs around it" in reason


def test_a_part_of_the_data_is_left_to_the_user() -> None:
    reason = refused("""
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(model(data.tensors[0][:16]), data.tensors[1][:16]).backward()
        optimizer.step()
    """)
    assert "next(iter(loader))" in reason


def test_an_edit_that_does_not_cure_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    from gradcheck.remedies.editing.statements import insert_before
    from gradcheck.remedies.loop.write_steps import step_of
    from gradcheck.remedies.writers import WRITERS

    def useless(p: object, context: object) -> None:
        insert_before(*step_of(context), "pass")  # type: ignore[arg-type]

    def harmful(p: object, context: object) -> None:
        insert_before(*step_of(context), "raise KeyError('harm')")  # type: ignore[arg-type]

    faulty = LOOPS["never cleared, in a function"][0]
    monkeypatch.setitem(WRITERS, "clear-gradients", useless)
    ((_, outcome),) = mended(faulty).outcomes
    assert outcome.status == "not-verified" and "GRAPH006 is still found" in outcome.reason and "+    pass" in outcome.diff
    monkeypatch.setitem(WRITERS, "clear-gradients", harmful)
    ((_, outcome),) = mended(faulty).outcomes
    assert outcome.status in ("worse", "not-verified") and "harm" in outcome.reason


def test_the_loop_may_stand_in_a_module_beside_the_script() -> None:
    Path("steps.py").write_text("def fit(model, optimizer, loss):\n    loss.backward()\n    optimizer.step()\n")
    result = mended("""
    from steps import fit
    for _ in range(4):
        for x, y in loader:
            fit(model, optimizer, F.cross_entropy(model(x), y))
    """)
    assert [o.status for _, o in result.outcomes] == ["kept"]
    assert [d.path for d in result.drafts] == ["steps.py"]
    assert "    optimizer.zero_grad()\n    loss.backward()\n    optimizer.step()\n" in result.drafts[0].text
