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
from tests.remedies.editing.loops import HEAD, LOOPS


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
