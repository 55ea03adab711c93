"""Trainings one after another: the next one is waited for, and what was not reached is said."""

from __future__ import annotations

import traceback
from pathlib import Path

import pytest
from torch import nn

from gradcheck.capture import clock
from gradcheck.capture.further import further_training
from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.types.report import LATER
from tests.scripts import written

STEP = """
def train(net, steps=9):
    opt = Adam(net.parameters())
    for i in range(steps):
        here(net)
        loss(net).backward()
        opt.step()
"""
NEXT = {
    "a function that trains": f"{STEP}\ntrain(a)\ntrain(b)  # next\n",
    "what follows in a function": f"{STEP}\ndef main():\n    train(a)\n    if flag:\n        train(b)  # next\n\nmain()\n",
    "a method": "class Run:\n    def all(self):\n        here()\n        self.late()  # next\n"
    "    def late(self):\n        loss().backward()\n        opt.step()\n\nRun().all()\n",
    "a method of an object that was made before": "class Run:\n    def first(self):\n        for _ in data:\n            here()\n"
    "    def late(self):\n        loss().backward()\n        opt.step()\n\nrun = Run()\nrun.first()\nrun.late()  # next\n",
    "a trainer": "from lightning import Trainer\nfirst = Trainer()\nhere()\nother = Trainer()\nother.fit(b)  # next\n",
}
NONE = {
    "its own schedule": "for e in data:\n    for x in data:\n        here()\n    loss().backward()\n    schedule.step()\n",
    "a step of two": "def step():\n    here()\n    loss().backward()\n    opt.step()\n\nwhile True:\n    step()\n",
    "an environment, and a picture": f"{STEP}\ntrain(a)\nif flag:\n    env.step(0)\nelse:\n    saliency().backward()\n",
    "a branch that is not taken": f"{STEP}\nflag = False\ntrain(a)\nif flag:\n    train(b)\n",
    "a mode": f"{STEP}\ndef evaluate(net):\n    net.eval()\n    net.train()\n\ntrain(a)\nevaluate(a)\n",
    "a definition": f"{STEP}\ntrain(a)\n\ndef main():\n    train(b)\n",
    "a test": "from lightning import Trainer\nfirst = Trainer()\nhere()\nother = Trainer()\nother.test(b)\n",
}


@pytest.mark.parametrize("name", [*NEXT, *NONE])
def test_the_next_training_is_read_from_the_text(tmp_path, name):
    text = NEXT.get(name) or NONE[name]
    path = written(tmp_path, text)

    def here(*_: object) -> None:
        raise InterruptedError

    given = {"here": here, "a": nn.Linear(1, 1), "Adam": list, "flag": True, "data": [1], "Trainer": list, "__name__": "__main__"}
    code = compile(text.replace("from lightning import Trainer\n", "\n"), str(path), "exec")
    with pytest.raises(InterruptedError) as caught:
        exec(code, given)
    place = further_training(traceback.walk_tb(caught.tb))
    expected = [i for i, line in enumerate(text.splitlines(), 1) if line.endswith("# next")]
    assert ([place.line] if place is not None else []) == expected


TWO = """
import torch
from torch import nn

torch.manual_seed(0)
first, second = nn.Linear(8, 8), nn.Linear(8, 1)


def train(net, steps):
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(4, 8)).square().mean().backward()
        optimizer.step()


train(first, STEPS)
train(second, 40)
"""


def run(path: Path) -> tuple[list[int], list[str]]:
    spec = ScriptSpec(str(path), ())
    with captured(spec) as capture:
        trainings = trainings_of(capture, spec)
        return [t.loop.steps for t in trainings], [n.why for t in trainings for n in t.lacks if n.what == LATER]


def test_a_second_training_is_reached(tmp_path):
    assert run(written(tmp_path, TWO.replace("STEPS", "300"))) == ([300, 40], [])


def test_one_that_is_not_reached_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(clock, "WAITED", 0.1)
    path = written(tmp_path, TWO.replace("STEPS", "10**9"))
    (_, why) = run(path)
    assert why == [f"{path} trains further from line 18: that was not reached"]
