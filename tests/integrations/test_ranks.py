"""Two processes that train together: the callback stops both at the same step, and rank 0 alone speaks and saves."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SCRIPT = """
import json, os, sys
from pathlib import Path
import torch
from tests.integrations import trainers
from tests.integrations.trainers import Plan

plan, which, folder = Plan(trainers.vanishing, steps=60), sys.argv[1], Path(sys.argv[2])
if which == "lightning":
    import lightning.pytorch as pl
    from gradcheck.integrations.lightning import GradcheckCallback

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.net = plan.model()

        def training_step(self, batch, index):
            return torch.nn.functional.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self):
            return plan.optimizer(self)

    callback = GradcheckCallback(every=5, stop_on="error")
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", devices=2, strategy="ddp", callbacks=[callback], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=str(folder / "out"),
    )
    trainer.fit(Module(), plan.loader())
    steps = trainer.global_step
else:
    from transformers import Trainer, TrainingArguments
    from gradcheck.integrations.transformers import GradcheckCallback

    model, callback = trainers.WithLoss(plan.model()), GradcheckCallback(every=5, stop_on="error")
    arguments = TrainingArguments(
        output_dir=str(folder / "out"), use_cpu=True, per_device_train_batch_size=32, num_train_epochs=1, report_to="none",
        save_strategy="no", disable_tqdm=True,
    )
    data = [{"x": x, "labels": y} for x, y in plan.data()]
    trainer = Trainer(model=model, args=arguments, train_dataset=data, callbacks=[callback], optimizers=(plan.optimizer(model), None))
    trainer.train()
    steps = trainer.state.global_step
said = {"steps": steps, "report": callback.report is not None, "stopped": callback.stopped is not None}
(folder / f"rank{os.environ['RANK']}.json").write_text(json.dumps(said))
"""


@pytest.mark.parametrize(("which", "library"), [("transformers", "accelerate"), ("lightning", "lightning")])
def test_both_ranks_stop_at_the_same_step(which: str, library: str, tmp_path: Path) -> None:
    pytest.importorskip(library)
    script = tmp_path / "train.py"
    script.write_text(SCRIPT)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script), which, str(tmp_path)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1))
    assert first == {"steps": second["steps"], "report": True, "stopped": True}
    assert second["report"] is False and 1 <= second["steps"] < 30
    assert [p.name for p in tmp_path.rglob("gradcheck.json")] == ["gradcheck.json"]
    assert (done.stdout + done.stderr).count("gradcheck stops the training at step") == 1
