"""Trainings of which one thing was changed: the first place at which they part is found, and no other."""

from __future__ import annotations

import functools
import gc
import itertools
import json
import random
import sys

import pytest
import torch
from torch import nn

from gradcheck.bisect import story
from gradcheck.bisect.recorder import EventRecorder, fingerprint
from gradcheck.bisect.recording import load, save
from gradcheck.bisect.story import BisectOrders, Side, bisected
from gradcheck.errors import TargetError
from gradcheck.live.launch import Exit
from gradcheck.report.bisection import as_json, page, text

STEPS = 3


class Block(nn.Module):
    def __init__(self, names=("norm", "fc"), eps=1e-5, cut=False, own=1.0):
        super().__init__()
        self.names, self.cut, self.own = names, cut, own
        setattr(self, names[0], nn.LayerNorm(16, eps=eps))
        setattr(self, names[1], nn.Linear(16, 16))
        self.drop = nn.Dropout(0.1)

    def forward(self, x):
        norm, fc = (getattr(self, n) for n in self.names)
        return (x.detach() if self.cut else x) * self.own + self.drop(torch.relu(fc(norm(x))))


class Net(nn.Module):
    def __init__(self, where="blocks", **changes):
        super().__init__()
        self.inp, self.where = nn.Linear(8, 16), where
        setattr(self, where, nn.ModuleList([Block(**changes), Block(**changes)]))
        self.bn, self.head = nn.BatchNorm1d(16), nn.Linear(16, 1)

    def forward(self, x):
        x = self.inp(x)
        for block in getattr(self, self.where):
            x = block(x)
        return self.head(self.bn(x))


def train(
    *,
    seed=0,
    init=None,
    order=None,
    dropout=None,
    decay=0.01,
    dtype=torch.float32,
    clip=None,
    noise=0.0,
    compiled=False,
    term=0.0,
    cuts=1,
    **changes,
):
    torch.manual_seed(seed)
    random.seed(seed)
    model = Net(**changes).to(dtype)
    if init:
        init(model)
    run = torch.compile(model, backend="aot_eager") if compiled else model
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=decay)
    x = torch.randn(8 * STEPS, 8).to(dtype)
    if order is not None:
        x[8 * order :] = x[8 * order :].flip(0)
    if dropout is not None:
        torch.manual_seed(dropout)
    for step in itertools.count():
        batch = x[8 * step : 8 * step + 8]
        optimizer.zero_grad()
        for part in batch.chunk(cuts):
            loss = ((run(part) - 2 * part[:, :1]) ** 2).mean() / cuts
            (loss + term * (model.inp.weight.sum() - model.inp.weight.detach().sum())).backward()
        if noise:
            own = torch.Generator().manual_seed(random.SystemRandom().getrandbits(40))
            for p in model.parameters():
                p.grad.mul_(1 + noise * torch.randn(p.shape, generator=own))
        if clip:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()


class Enough(BaseException):
    pass


def recorded(**changes):
    def enough():
        raise Enough

    gc.collect()  # models of another run would be found
    recorder = EventRecorder(STEPS, enough)
    recorder.install()
    try:
        train(**changes)
    except Enough:
        pass
    finally:
        recorder.remove()
    assert not recorder.run.failure
    return recorder.run


@functools.cache
def base():
    return recorded(), recorded()


def compared(a=None, tolerance=0.0, **changes):
    runs = tuple(recorded(**a) for _ in range(3)) if a else base()
    return bisected(Side("a.py", runs), Side("b.py", (recorded(**{**(a or {}), **changes}),)), BisectOrders(STEPS, tolerance=tolerance))


def _zero(model):
    nn.init.zeros_(model.head.weight)


def test_equal_programs_are_equal():
    found = compared()
    assert found.verdict == "equal" and "bit for bit" in found.noise and found.compared > 150


@pytest.mark.parametrize(
    ("changes", "kind", "name", "words"),
    [
        ({"init": _zero}, "weight", "head.weight", "initial weights differ at `head.weight`"),
        ({"order": 1}, "input", "", "the inputs of step 1 differ, by"),
        ({"dropout": 7}, "forward", "blocks.0.drop", "the random state of torch at the beginning of step 0 differs"),
        ({"eps": 1e-6}, "forward", "blocks.0.norm", "eps=1e-06"),
        ({"own": 1.001}, "forward", "blocks.0", "in its own code"),
        ({"cut": True}, "backward", "blocks.0", "while all activations agree"),
        ({"term": 1.0}, "gradient", "inp.weight", "gradient of `inp.weight` at step 0"),
        ({"clip": 0.01}, "edited", "inp.weight", "it is changed after the backward pass"),
        ({"decay": 0.1}, "update", "inp.weight", "weight_decay 0.01 against 0.1"),
        ({"dtype": torch.bfloat16}, "weight", "inp.weight", "in float32, B in bfloat16"),
        ({"where": "layers", "names": ("ln", "dense"), "eps": 1e-6}, "forward", "blocks.0.norm", "(`layers.0.ln` in B)"),
    ],
)
def test_the_first_place_at_which_they_part(changes, kind, name, words):
    found = compared(**changes)
    first = found.partings[0]
    assert found.verdict == "parted" and (first.kind, first.a) == (kind, name)
    assert words in "\n".join((found.headline, *found.causes)), found


def test_only_the_first_parting_says_that_all_before_it_agrees():
    """At the step after another update activations, loss and gradients differ, each because of what came before it."""
    found = compared(decay=0.1)
    kinds = {p.kind for p in found.partings}
    assert "while all gradients agree" in found.headline and {"update", "forward"} <= kinds
    assert not any("agree" in p.what for p in found.partings), found.partings


def test_renamed_layers_are_the_same():
    found = compared(where="layers", names=("ln", "dense"))
    assert found.verdict == "equal" and not found.notes


@pytest.mark.parametrize("changes", [{}, {"decay": 0.1}])
def test_the_noise_of_a_is_no_difference(changes):
    found = compared({"noise": 1e-6}, **changes)
    assert found.verdict == ("parted" if changes else "within-noise"), found
    if changes:
        assert found.partings[0].kind == "update" and found.partings[0].step == 0


def test_a_program_without_a_seed_cannot_be_compared():
    runs = recorded(seed=1), recorded(seed=2)
    found = bisected(Side("a.py", runs), Side("b.py", (recorded(seed=3),)), BisectOrders(STEPS))
    assert found.verdict == "not-comparable" and "initial weights differ from run to run" in found.headline


def test_what_is_compiled_is_seen_at_its_edge():
    found = compared(compiled=True, decay=0.1, tolerance=1e-5)
    assert found.partings[0].kind == "update" and any("activations inside were not seen" in n for n in found.notes), found


def test_a_batch_that_is_cut_otherwise_is_compared_by_its_gradients():
    found = compared(cuts=2)
    assert found.partings[0].kind == "gradient" and any("divided differently" in n for n in found.notes)


def test_recording_changes_nothing():
    def end(record):
        torch.manual_seed(0)
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters())
        recorder = EventRecorder(9, lambda: None)
        if record:
            recorder.install()
        for _ in range(4):
            optimizer.zero_grad()
            model(torch.randn(8, 8)).square().mean().backward()
            optimizer.step()
        recorder.remove()
        return [*model.state_dict().values(), torch.get_rng_state()]

    assert all(map(torch.equal, end(False), end(True)))


def test_distances_are_told_by_sketches():
    torch.manual_seed(0)
    x = torch.randn(50_001)
    near = fingerprint(x), fingerprint(x + 1e-3 * torch.randn(50_001))
    from gradcheck.bisect.compare import distance

    assert 3e-4 < distance(*near) < 3e-3 and distance(near[0], fingerprint(x.clone())) == 0.0
    assert distance(near[0], fingerprint(2.0 * x, 2.0)) < 1e-12
    assert fingerprint(torch.randn(3, 3).to_sparse()) is not None and fingerprint(torch.empty(0)) is not None


def test_a_recording_is_read_as_it_was_written(tmp_path):
    run = recorded()
    save([run], tmp_path / "a.rec")
    assert load(tmp_path / "a.rec") == [run] and (tmp_path / "a.rec").stat().st_size < 60_000


def test_text_page_and_json_say_the_same():
    found = compared(eps=1e-6)
    assert all("blocks.0.norm" in shown for shown in (text(found), page(found), as_json(found)))
    assert "<th scope=\"col\"></th>" not in page(found), "a column without a name"
    assert json.loads(as_json(found))["verdict"] == "parted"


def test_a_full_folder_is_not_the_fault_of_the_program(tmp_path, monkeypatch):
    def launched_instead(program, child, order, folder, *rest):
        (folder / "room").mkdir()  # nothing can be written there
        (folder / "output").write_text("OSError: [Errno 28] No space left on device")
        return Exit(1)

    monkeypatch.setattr(story, "launch", launched_instead)
    with pytest.raises(TargetError, match="nothing can be recorded in") as refused:
        story.recorded(f"{sys.executable} -m train", BisectOrders(), 2, print)
    assert "TMPDIR" in refused.value.hint


def test_the_command(tmp_path, monkeypatch, capsys):
    from gradcheck.cli import main

    monkeypatch.chdir(tmp_path)
    lines = ["import torch", "torch.manual_seed(0)", "m = torch.nn.Linear(4, 1)", "o = torch.optim.SGD(m.parameters(), lr=0.1)"]
    lines += ["for _ in range(9): o.zero_grad(); m(torch.randn(8, 4)).square().mean().backward(); o.step()"]
    (tmp_path / "a.py").write_text("\n".join(lines))
    (tmp_path / "b.py").write_text("\n".join(lines).replace("lr=0.1", "lr=0.2"))

    def run(*words):
        monkeypatch.setattr(sys, "argv", ["gradcheck", "bisect", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        return ended.value.code or 0, *capsys.readouterr()

    assert run("a.py", "--save", "a.rec", "--steps", "3")[0] == 0
    code, out, _ = run("a.rec", f"{sys.executable} b.py", "--steps", "3")
    assert code == 1 and "lr 0.1 against 0.2" in out and "bit for bit" in out
