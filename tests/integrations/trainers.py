"""One training in a plain loop, in Accelerate, in Lightning and in the Trainer of transformers: the same model, data, order, optimizer and
clipping, with or without a loss scaler and accumulation. Each returns the report of the watched run."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import gradcheck
from gradcheck.types.report import Report
from tests.live.loops import blobs

SIZE = 32


@dataclass(frozen=True)
class Plan:
    """`make` builds the model. `scale`: factor of the loss scaler, for float16 autocast."""

    make: Callable[[], nn.Module]
    lr: float = 0.1
    clip: float = 0.5
    accumulate: int = 1
    scale: float | None = None
    steps: int = 30
    every: int = 5

    def model(self) -> nn.Module:
        torch.manual_seed(0)
        return self.make()

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        return torch.optim.SGD(model.parameters(), lr=self.lr)

    def data(self) -> TensorDataset:
        return TensorDataset(*blobs(samples=self.steps * self.accumulate * SIZE))

    def loader(self) -> DataLoader[Any]:
        return DataLoader(self.data(), SIZE)

    def scaler(self) -> torch.amp.GradScaler:
        return torch.amp.GradScaler("cpu", init_scale=self.scale or 1.0, growth_interval=10**6, enabled=self.scale is not None)

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        return torch.autocast("cpu", dtype=torch.half) if self.scale else contextlib.nullcontext()


def deep(depth: int, activation: type[nn.Module], width: int = 32) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(20, width), activation()]
    for _ in range(depth):
        layers += [nn.Linear(width, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 5))


def healthy() -> nn.Module:
    model = deep(1, nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
    return model


def vanishing() -> nn.Module:
    return deep(12, nn.Sigmoid)


def exploding() -> nn.Module:
    """Its gradient is far too large, which clipping would hide."""
    model = deep(12, nn.ReLU)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.normal_(layer.weight, std=0.8)
    return model


# ------------------------------------------------------------------------------ the same in four ways


def plain(plan: Plan, folder: Path) -> Report:
    model = plan.model()
    optimizer, scaler = plan.optimizer(model), plan.scaler()
    with gradcheck.watch(model, optimizer, every=plan.every) as board:
        for i, (x, y) in enumerate(plan.loader()):
            with plan.autocast():
                loss = F.cross_entropy(model(x), y) / plan.accumulate
            scaler.scale(loss).backward()
            if i % plan.accumulate == plan.accumulate - 1:
                scaler.unscale_(optimizer)
                nn.utils.clip_grad_norm_(model.parameters(), plan.clip)
                scaler.step(optimizer)
                scaler.update()
                optimizer.zero_grad()
    assert board.failure is None
    return board.report()


def accelerated(plan: Plan, folder: Path) -> Report:
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=plan.accumulate)
    with _loss_scaler(accelerator, plan):
        model = plan.model()
        optimizer = plan.optimizer(model)
        model, optimizer, loader = accelerator.prepare(model, optimizer, plan.loader())
        with gradcheck.watch(model, optimizer, every=plan.every) as board:
            for x, y in loader:
                with accelerator.accumulate(model):
                    with plan.autocast():
                        loss = F.cross_entropy(model(x), y)
                    accelerator.backward(loss)
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), plan.clip)
                    optimizer.step()
                    optimizer.zero_grad()
    assert board.failure is None
    return board.report()


@contextlib.contextmanager
def _loss_scaler(accelerator: Any, plan: Plan) -> Iterator[None]:
    """Accelerate scales losses on accelerators alone; what it does there is done here with a scaler of the CPU."""
    if plan.scale is None:
        yield
        return
    accelerator.scaler, accelerator.native_amp = plan.scaler(), True
    before, accelerator.state._mixed_precision = accelerator.state._mixed_precision, "fp16"
    try:
        yield
    finally:
        accelerator.state._mixed_precision = before


def lightning(plan: Plan, folder: Path, callback: Any = None, package: str = "lightning.pytorch") -> Report:
    import importlib
    import logging

    pl = importlib.import_module(package)
    logging.getLogger(package).setLevel(logging.WARNING)
    from gradcheck.integrations.lightning import GradcheckCallback

    class Module(pl.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = plan.model()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return F.cross_entropy(self.net(batch[0]), batch[1])

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return plan.optimizer(self)

    callback = callback or GradcheckCallback(every=plan.every)
    plugins = []
    if plan.scale:
        precision = importlib.import_module(f"{package}.plugins.precision")
        plugins = [precision.MixedPrecision("16-mixed", "cpu", plan.scaler())]
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        accumulate_grad_batches=plan.accumulate,
        gradient_clip_val=plan.clip,
        callbacks=[callback],
        plugins=plugins,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=str(folder),
    )
    trainer.fit(Module(), plan.loader())
    report: Report = callback.report
    return report


class WithLoss(nn.Module):
    """What the Trainer expects of a model."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = self.net(x)
        return {"logits": logits} if labels is None else {"loss": F.cross_entropy(logits, labels), "logits": logits}


def transformers(plan: Plan, folder: Path, callback: Any = None) -> Report:
    from transformers import Trainer, TrainingArguments

    from gradcheck.integrations.transformers import GradcheckCallback

    class InOrder(Trainer):
        def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
            return None

        def create_accelerator_and_postprocess(self) -> None:
            super().create_accelerator_and_postprocess()
            stack.enter_context(_loss_scaler(self.accelerator, plan))

        def compute_loss_context_manager(self) -> Any:
            return plan.autocast()

    model = WithLoss(plan.model())
    callback = callback or GradcheckCallback(every=plan.every)
    arguments = TrainingArguments(
        output_dir=str(folder),
        use_cpu=True,
        per_device_train_batch_size=SIZE,
        gradient_accumulation_steps=plan.accumulate,
        max_grad_norm=plan.clip,
        num_train_epochs=1,
        lr_scheduler_type="constant",
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )
    data = [{"x": x, "labels": y} for x, y in plan.data()]
    with contextlib.ExitStack() as stack:
        trainer = InOrder(model=model, args=arguments, train_dataset=data, callbacks=[callback], optimizers=(plan.optimizer(model), None))
        trainer.train()
    report: Report = callback.report
    return report
