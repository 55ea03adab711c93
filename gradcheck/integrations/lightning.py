"""A callback for Lightning, of either name: `lightning` or `pytorch_lightning`.

    trainer = Trainer(callbacks=[GradcheckCallback(stop_on="error")])

Lightning calls `on_before_optimizer_step` before clipping and other trainers call theirs after it, so no hook of a trainer is used
to read gradients: gradcheck sees torch's own functions, and reads before clipping everywhere.
"""

import importlib
import sys
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.integrations.monitor import Monitored


def _loaded() -> Any:
    """The package that the user has imported, else the one that is installed."""
    names = ("lightning.pytorch", "pytorch_lightning")
    for name in sorted(names, key=lambda name: name not in sys.modules):
        try:
            return importlib.import_module(name)
        except ImportError:
            continue
    raise ConfigError("this callback needs Lightning, which is not installed", hint="pip install 'gradcheck[lightning]'")


_pytorch = _loaded()
_Base: Any = _pytorch.Callback
_rank_zero = importlib.import_module(f"{_pytorch.__name__}.utilities.rank_zero")


class GradcheckCallback(Monitored, _Base):
    """Watches the training of a Lightning module.

    The first four steps of the optimizer are measured, and then as many as `overhead`, the share of the run's time that watching may
    take, allows; or, with `every`, every so many. `stop_on`: "error" or "warning" sets
    `trainer.should_stop` at such a finding; without it findings are only logged, once each. `save`: True saves the report as
    gradcheck.json in the trainer's log folder; or a path; or False. `sinks`: trackers, see gradcheck/integrations. `config`: as for
    `gradcheck.watch`.
    With several optimizers the first one is followed. Raises `gradcheck.errors.ConfigError` for bad settings.
    """

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        folder = trainer.log_dir or trainer.default_root_dir  # on every rank: Lightning broadcasts it
        self._taken = trainer.global_step
        optimizer = trainer.optimizers[0] if trainer.optimizers else None
        self._monitor.begin(pl_module, optimizer, folder=folder, say=_rank_zero.rank_zero_info, taken=self._taken)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        stop = self._monitor.stopped is not None
        if trainer.world_size > 1:
            stop = self._monitor.speaks(trainer.global_step - self._taken - 1) and trainer.strategy.reduce_boolean_decision(stop, all=False)
        trainer.should_stop = trainer.should_stop or stop

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._monitor.end()

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self._monitor.end()

    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self._monitor.end()
