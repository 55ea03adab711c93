"""Scripts that train where one would not look: what is seen of them, and what is said of the others."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from gradcheck.capture.script import captured
from gradcheck.capture.spec import ScriptSpec
from gradcheck.capture.unseen import nothing_seen
from gradcheck.config.settings import Settings
from gradcheck.pipeline import scan_script
from gradcheck.types.report import Report
from tests.scripts import DATA, LOOP, complaints, written

STEPS = LOOP.replace("\n", "\n    ")
IN_A_THREAD = f"""
import threading
def train():{STEPS}
thread = threading.Thread(target=train)
thread.start()
thread.join()
"""
AT_THE_END = f"""
import atexit
@atexit.register
def train():{STEPS}
"""


def fast(script: Path) -> list[Report]:
    return scan_script(ScriptSpec(str(script), quiet=True), Settings(fast=True))


def in_full(script: Path, looked: int) -> None:
    reports = fast(script)
    assert len(reports) == 1 and not complaints(reports) and reports[0].coverage.looked > looked, reports[0].coverage


@pytest.mark.parametrize("text", [IN_A_THREAD, AT_THE_END])
def test_a_training_in_a_thread_or_an_exit_handler_is_judged_in_full(text: str, tmp_path: Path) -> None:
    in_full(written(tmp_path, DATA + text), looked=20)


def test_layers_that_take_their_size_from_the_first_batch_between_random_ones(tmp_path: Path) -> None:
    """Their weights are drawn inside the first call: what is drawn after them is another number when they are there already."""
    net = "nn.Sequential(nn.LazyLinear(64), nn.LazyBatchNorm1d(), nn.ReLU(), nn.Dropout(0.1), nn.LazyLinear(10))"
    lazy = DATA.replace("def net(): return", f"def net(): return {net}\n\n\ndef unused():\n    return")
    in_full(written(tmp_path, lazy + LOOP), looked=20)


ENSEMBLE = """
from torch.func import functional_call, stack_module_state, vmap
params, buffers = stack_module_state([net().eval() for _ in range(3)])
base = net().eval().to("meta")
optimizer = torch.optim.SGD(params.values(), lr=0.1)
for epoch in range(8):
    for x, y in loader:
        out = vmap(lambda p, b, x: functional_call(base, (p, b), (x,)), (0, 0, None))(params, buffers, x)
        optimizer.zero_grad()
        F.cross_entropy(out.flatten(0, 1), y.repeat(3)).backward()
        optimizer.step()
"""


def test_an_ensemble_under_vmap_is_judged_in_full(tmp_path: Path) -> None:
    in_full(written(tmp_path, DATA.partition("model =")[0] + ENSEMBLE), looked=15)


def test_a_traced_model_is_trained_again_and_the_way_to_more_is_said(tmp_path: Path) -> None:
    traced = DATA.replace("model = net()", "model = torch.jit.trace(net().eval(), inputs[:4])")
    (report,) = fast(written(tmp_path, traced + LOOP))
    assert report.measurements[0].probe.losses and report.coverage.looked > 10, report.coverage
    assert "scan the model as it is before it is compiled" in report.coverage.remedies


def unseen(path: str) -> str:
    spec = ScriptSpec(path, quiet=True)
    with captured(spec) as run:
        return nothing_seen(run, spec).hint or ""


@pytest.mark.parametrize(("where", "path", "start"), [(".", "outer/inner/train.py", ""), ("outer/inner", "train.py", "cd ../.. && ")])
def test_a_module_of_a_package_is_started_from_above_it(where: str, path: str, start: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inner = tmp_path / "outer" / "inner"
    inner.mkdir(parents=True)
    for file in (inner.parent / "__init__.py", inner / "__init__.py"):
        file.touch()
    (inner / "train.py").write_text("from . import net")
    monkeypatch.chdir(tmp_path / where)
    assert unseen(path) == f"it is a module of a package: {start}gradcheck scan -- python -m outer.inner.train"


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
def test_a_copy_of_the_process_that_trains_is_named(tmp_path: Path) -> None:
    assert "(os.fork)" in unseen(str(written(tmp_path, "import os\nif os.fork() == 0: os._exit(0)\nos.wait()")))
