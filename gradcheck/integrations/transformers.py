"""A callback for the Trainer of Hugging Face's transformers.

    trainer = Trainer(model=model, args=args, train_dataset=data, callbacks=[GradcheckCallback(stop_on="error")])

The Trainer calls `on_pre_optimizer_step` after clipping and Lightning its like before it, so no hook of a trainer is used to read
gradients: gradcheck sees torch's own functions, and reads before clipping everywhere.
"""

from typing import Any

import torch

from gradcheck.errors import ConfigError
from gradcheck.integrations.monitor import Monitored

try:
    from transformers import TrainerCallback
    from transformers.utils import logging
except ImportError as error:
    raise ConfigError("this callback needs transformers, which is not installed", hint="pip install 'gradcheck[transformers]'") from error

_Base: Any = TrainerCallback
logger = logging.get_logger(__name__)  # of whose levels the Trainer shows warnings by default


class GradcheckCallback(Monitored, _Base):
    """Watches the training of a Trainer.

    The first four steps of the optimizer are measured, and then as many as `overhead`, the share of the run's time that watching may
    take, allows; or, with `every`, every so many. `stop_on`: "error" or "warning" sets
    `control.should_training_stop` at such a finding; without it findings are only logged, once each. `save`: True saves the report as
    gradcheck.json in `args.output_dir`; or a path; or False. `sinks`: trackers, see gradcheck/integrations. `config`: as for
    `gradcheck.watch`.
    The Trainer does not tell its callbacks of an exception: after one, `close()` takes the hooks out and saves the report, as the next
    training and the end of the program do.
    Raises `gradcheck.errors.ConfigError` for bad settings.
    """

    def close(self) -> None:
        """Ends the watching of a training that an exception ended. May be called at any time."""
        self._monitor.end()

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, optimizer: Any = None, **kwargs: Any) -> None:
        self._taken = state.global_step
        self._monitor.begin(model, optimizer, folder=args.output_dir, say=logger.warning, taken=self._taken)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        stop = self._monitor.stopped is not None
        if args.world_size > 1:
            stop = self._monitor.speaks(state.global_step - self._taken - 1) and _on_any_rank(stop, args.device)
        if stop:
            control.should_training_stop = True

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._monitor.end()


def _on_any_rank(flag: bool, device: torch.device) -> bool:
    """Whether it is so in any process: all of them must stop at the same step."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flag
    told = torch.tensor(int(flag), device=device)
    torch.distributed.all_reduce(told, torch.distributed.ReduceOp.MAX)
    return bool(told.item())
