"""Two opposed trainings, in balance and not."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.trainings import trainings_of
from gradcheck.rules.loss.adversary_saturated import adversary_saturated
from gradcheck.types.loop import LoopAdversary
from tests.literals import loop, measurement
from tests.rules.verdicts import findings

GAN = """
import math
import torch
from torch import nn
from torch.nn import functional as F

torch.manual_seed(0)
def net(i, o): return nn.Sequential(nn.Linear(i, 32), nn.LeakyReLU(0.2), nn.Linear(32, 32), nn.LeakyReLU(0.2), nn.Linear(32, o))
G, D = net(4, 2), net(2, 1)
optG = torch.optim.Adam(G.parameters(), lr=RATE_G, betas=(0.5, 0.999))
optD = torch.optim.Adam(D.parameters(), lr=RATE_D, betas=(0.5, 0.999))
angles = torch.rand(1024) * 2 * math.pi
points = torch.stack([angles.cos(), angles.sin()], 1) + CENTRE
for step in range(STEPS):
    real, fake = points[torch.randint(1024, (64,))], G(torch.randn(64, 4))
    on_real, on_fake = D(real), D(fake.detach())
    errD = LOSS_D
    optD.zero_grad()
    errD.backward()
    optD.step()
    out = D(fake)
    errG = LOSS_G
    optG.zero_grad()
    errG.backward()
    optG.step()
with torch.no_grad():
    made = G(torch.randn(1000, 4)) - CENTRE
    print("RADIUS", (made.norm(dim=1) - 1).abs().mean().item())
"""
BCE = "F.softplus(-on_real).mean() + F.softplus(on_fake).mean()"
SATURATING, OTHER = "-F.softplus(out).mean()", "F.softplus(-out).mean()"
HINGE = "F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()"


def script(loss_d: str, loss_g: str, rate_g: float = 1e-3, rate_d: float = 1e-3, centre: float = 0.0, steps: int = 120) -> str:
    text = GAN.replace("LOSS_D", loss_d).replace("LOSS_G", loss_g).replace("RATE_G", str(rate_g)).replace("RATE_D", str(rate_d))
    return text.replace("CENTRE", str(centre)).replace("STEPS", str(steps))


CASES = {  # whether one has won
    "one that has won": (script(BCE, SATURATING, rate_g=1e-4, rate_d=1e-2, centre=4.0), True),
    "one whose rival has a loss that is linear in the probability": (
        script(BCE, "(1 - out.sigmoid()).mean()", rate_g=1e-5, rate_d=3e-2, centre=9.0),
        True,
    ),
    "a loss that saturates": (script(BCE, SATURATING), False),
    "a loss that does not": (script(BCE, OTHER), False),
    "a strong discriminator, and a loss that does not saturate": (script(BCE, OTHER, rate_g=1e-4, rate_d=1e-2, centre=4.0), False),
    "hinges": (script(HINGE, "-out.mean()"), False),
    "distances": (script("on_fake.mean() - on_real.mean() + 0.1 * (on_real.square() + on_fake.square()).mean()", "-out.mean()"), False),
    "a smooth label": (script(BCE.replace("softplus(-on_real).mean()", "softplus(-on_real).mean() + 0.1 * on_real.mean()"), OTHER), False),
    "two steps of the one": (script(BCE, OTHER).replace("    out = D(fake)\n", "    if step % 2: continue\n    out = D(fake)\n"), False),
    "a faster one": (script(BCE, SATURATING, rate_d=5e-3), False),
    "an actor and its critic": (
        script("(on_fake - (1 - (fake.detach() - real).square().sum(1, keepdim=True))).square().mean()", "-out.mean()"),
        False,
    ),
    "an actor that nothing rewards": (script("on_fake.square().mean()", "-out.mean()"), False),
    "squares": (script("(on_real - 1).square().mean() + on_fake.square().mean()", "(out - 1).square().mean()"), False),
}


def seen(text: str, folder: Path) -> list[LoopAdversary | None]:
    (folder / "train.py").write_text(text)
    spec = ScriptSpec(str(folder / "train.py"), quiet=True)
    with captured(spec) as run:
        assert run.ending.how in ("end", "stopped"), run.error
        trainings = trainings_of(run, spec)
        assert all(t.loop.opposed == (t.loop.adversary is not None) for t in trainings)
        return [t.loop.adversary for t in trainings]


@pytest.mark.parametrize(("text", "won"), CASES.values(), ids=CASES)
def test_who_has_won(text: str, won: bool, tmp_path: Path) -> None:
    first, second = seen(text, tmp_path)
    found = first or second
    assert found is not None and not (first and second) and found.name == "optD"
    verdicts = findings(adversary_saturated, measurement(loop=loop(adversary=found)))
    assert bool(verdicts) == won


def test_trainings_beside_each_other_are_not_opposed(tmp_path: Path) -> None:
    text = script(BCE, "F.softplus(-fake.sum(1)).mean()")
    assert seen(text, tmp_path) == [None, None]
