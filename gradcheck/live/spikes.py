"""Spikes of a watched run, traced to their batch, samples and tensor as they happen, and kept for `gradcheck scan --replay`.

On the CPU the loss is read before each backward pass, and the norm that a clipping function returns. A device is not waited for: there
spikes are detected at measured steps, by the norm of the gradients.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from gradcheck.analysis.curves import SpikeScore
from gradcheck.instrument.loader_batches import Fetched, LoaderBatches
from gradcheck.live.record import Record
from gradcheck.report.saved_runs import FOLDER, folder
from gradcheck.types.gauges import Spike
from gradcheck.workload.dtensor import is_spread
from gradcheck.workload.kept_batch import FORMAT, plain, random_states
from gradcheck.workload.tensors import tensors_in

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


NAMED = 3  # samples
DEPTH = 6  # nodes between the trained loss and torch's own: a division, a product


def _nll(node: Any) -> torch.Tensor:
    target = node._saved_target
    kept = target != node._saved_ignore_index
    found = -node._saved_self.gather(1, target.clamp(min=0).unsqueeze(1)).squeeze(1)
    return found.masked_fill(~kept, 0.0)


def _pairs(function: Callable[..., torch.Tensor]) -> Callable[[Any], torch.Tensor]:
    return lambda node: function(node._saved_self, node._saved_target, reduction="none")


_LOSSES: dict[str, Callable[[Any], torch.Tensor]] = {
    "NllLossBackward0": _nll,
    "NllLoss2DBackward0": _nll,
    "MseLossBackward0": _pairs(F.mse_loss),
    "SmoothL1LossBackward0": _pairs(F.smooth_l1_loss),
    "HuberLossBackward0": _pairs(F.huber_loss),
    "BinaryCrossEntropyWithLogitsBackward0": _pairs(F.binary_cross_entropy_with_logits),
    "BinaryCrossEntropyBackward0": _pairs(F.binary_cross_entropy),
}


@torch.no_grad()
def worst_samples(loss: torch.Tensor, size: int) -> tuple[tuple[int, float], ...]:
    """Place in the batch and share of the loss, of the samples with the largest. () where it cannot be told cheaply."""
    node: Any = loss.grad_fn
    for _ in range(DEPTH):
        if node is None or node.name() in _LOSSES:
            break
        behind = [n for n, _ in node.next_functions if n is not None and n.name() != "torch::autograd::AccumulateGrad"]
        node = behind[0] if len(behind) == 1 else None
    if node is None or node.name() not in _LOSSES:
        return ()
    try:
        each = _LOSSES[node.name()](node).detach().float()
    except (RuntimeError, AttributeError, IndexError):
        return ()
    if size < 1 or each.numel() % size or each.numel() == 0:
        return ()
    sums = each.reshape(size, -1).sum(1)
    total = float(sums.sum())
    if not total > 0 or total == float("inf"):
        bad = (~sums.isfinite()).nonzero().flatten().tolist()
        return tuple((i, 1.0 / len(bad)) for i in bad[:NAMED]) if bad else ()
    top = sums.topk(min(NAMED, size))
    return tuple((int(i), float(v) / total) for v, i in zip(top.values, top.indices, strict=True))


MOST = 100  # most spikes of a run that are recorded
MOST_SAMPLES = 256  # indices of one of them


class Spikes:
    """Asked by the monitor: `look` before a backward pass, `before_step` when its gradients are there."""

    def __init__(self, record: Record, files: SpikeFiles | None = None) -> None:
        self.record, self.files = record, files
        self.batches = LoaderBatches()
        self._losses, self._norms, self._clipped = SpikeScore(), SpikeScore(), SpikeScore()
        self.pending: Spike | None = None
        self.jumped = False  # the loss or the norm, in the step that is being taken

    def start(self) -> None:
        self.batches.install()
        if self.files is not None:
            self.batches.fetched = self.files.remember_random

    def stop(self) -> None:
        self.batches.remove()
        self.pending = None

    def look(self, loss: torch.Tensor | None, graph: torch.Tensor) -> None:
        """`loss`: without a scaler's factor; `graph`: what the backward pass is called on."""
        self.judge(loss.item() if loss is not None and loss.is_cpu and not loss.dim() else None, graph)

    def judge(self, value: float | None, graph: torch.Tensor) -> None:
        """`value`: of the loss, where it may be read."""
        self.batches.begin_backward()
        if value is not None and not self.record.several and self._losses.stands_out(value):
            self.jumped = True
            self.pending = self._of("loss", value, self._losses.level, graph)

    def note_clipped(self, norm: Any) -> None:
        """What a clipping function gave back."""
        if isinstance(norm, torch.Tensor) and norm.is_cpu and not norm.dim() and self._clipped.stands_out(norm.item()):
            self.jumped = True

    def before_step(self, norm: float | None) -> None:
        """`norm`: of all gradients, in a measured step."""
        if norm is not None and self._norms.stands_out(norm) and self.pending is None and not self.record.several:
            self.pending = self._of("gradient", norm, self._norms.level, None)
        pending, self.pending = self.pending, None
        if pending is None or len(self.record.spikes) >= MOST:
            return
        spike = self._put_down(replace(pending, step=self.record.steps))
        if self.files is not None:
            spike = replace(spike, file=self.files.keep(self.record.model, spike, self.batches.current))
        self.record.spikes.append(spike)

    def _of(self, what: Any, value: float, level: float, graph: torch.Tensor | None) -> Spike:
        fetched = self.batches.current
        if fetched is None:
            return Spike(self.record.steps, what, value, level)
        tensors = list(tensors_in(fetched.batch))
        size = len(fetched.samples) or next((len(t) for t in tensors if t.dim()), None)
        bad = any(t.is_floating_point() and not bool(t.isfinite().all()) for t in tensors)
        worst = worst_samples(graph, size) if graph is not None and size else ()
        return Spike(self.record.steps, what, value, level, size, fetched.samples[:MOST_SAMPLES], worst, bad)

    @torch.no_grad()
    def _put_down(self, spike: Spike) -> Spike:
        """Blames the parameter with the largest gradient, or the first one whose gradient is not finite. Parameters that are spread over
        processes are left alone: their norms need all processes, and only this one has the spike.
        """
        named = [(n, p.grad) for n, p in self.record.model.named_parameters() if p.grad is not None and not p.grad.is_sparse]
        if not named or any(map(is_spread, self.record.model.parameters())):
            return spike
        norms = [float(g.norm()) for _, g in named]
        broken = [i for i, n in enumerate(norms) if not math.isfinite(n)]
        if len(broken) == len(norms):
            return spike  # what came first cannot be told from it
        total = math.fsum(n * n for n in norms)
        place = broken[0] if broken else max(range(len(norms)), key=norms.__getitem__)
        share = None if broken or not total > 0 else norms[place] ** 2 / total
        name = named[place][0]
        layer = name.rpartition(".")[0]
        return replace(spike, tensor=name, share=share, layer=layer, site=self.record.sites.get(id(self.record.model.get_submodule(layer))))
