"""Batches of spikes, kept for `gradcheck scan --replay`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from gradcheck.instrument.loader_batches import Fetched
from gradcheck.report.saved_runs import FOLDER, folder
from gradcheck.types.gauges import Spike
from gradcheck.workload.dtensor import is_spread
from gradcheck.workload.kept_batch import FORMAT, plain, random_states

MOST_BYTES = 2_000_000_000  # of a model: a larger one is left out


@dataclass
class SpikeFiles:
    """The first `most` spikes of a run go into `folder`. A failure to write harms nothing: `why` gives the reason."""

    folder: Path
    most: int
    why: str = ""
    kept: int = 0
    _random: dict[str, Any] | None = None

    def remember_random(self) -> None:
        """The generators as they are when a batch has been fetched, before the model sees it."""
        if self.kept < self.most:
            self._random = random_states()

    def keep(self, model: nn.Module, spike: Spike, fetched: Fetched | None) -> str:
        """Returns the path, "" where nothing is kept."""
        if self.kept >= self.most or fetched is None:
            return ""
        path = self.folder / f"step-{spike.step}.pt"
        state = model.state_dict()
        size = sum(t.numel() * t.element_size() for t in state.values() if isinstance(t, torch.Tensor))
        fits = size <= MOST_BYTES and all(isinstance(t, torch.Tensor) and not is_spread(t) for t in state.values())
        saved = {
            "gradcheck": FORMAT,
            "step": spike.step,
            "value": spike.value,
            "samples": list(spike.samples),
            "batch": plain(fetched.batch),
            "random": self._random or random_states(),
            "model": dict(state) if fits else None,
        }
        try:
            if self.folder.parent.name == FOLDER.name and not self.folder.parent.exists():
                folder(self.folder.parent.parent)
            self.folder.mkdir(parents=True, exist_ok=True)
            new = path.with_suffix(".new")
            torch.save(saved, new)
            new.replace(path)
        except (OSError, RuntimeError) as error:
            self.why = f"{path}: {error}"
            return ""
        self.kept += 1
        return str(path)
