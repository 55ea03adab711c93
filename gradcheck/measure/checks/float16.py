"""Gradients that float16 flushes to zero: those that become non-zero when the loss is scaled up, as loss scaling would do."""

from typing import Any

import torch

from gradcheck.instrument.activation_recorder import ActivationRecorder, Call
from gradcheck.measure.checks.context import CheckContext, Unmeasured
from gradcheck.types.checks import HalfGradients
from gradcheck.types.layers import TensorStats

# Powers of two: they change no digit. The largest one whose gradients stay finite is used.
SCALES = (2.0**15, 2.0**11, 2.0**7)


def measure(context: CheckContext) -> HalfGradients | None:
    """Compares one backward pass of the first batch with a scaled one of the same copy. None for a model without float16 layers.

    Both forward passes are the same, random numbers included. Layers: those whose output is float16 and gets a gradient.
    """
    if not context.half:
        return None
    plain = _zeros(context, 1.0)
    for scale in SCALES:
        scaled = _zeros(context, scale)
        if scaled and all(gradient.finite for gradient in scaled.values()):
            return _compared(plain, scaled, scale)
    raise Unmeasured("the gradients overflow float16 at every scale that was tried")


def _zeros(context: CheckContext, scale: float) -> dict[tuple[str, int], TensorStats]:
    """Statistics of the gradient at every float16 output, by layer and call, with the loss times `scale`."""
    copy = context.fork()
    taps = ActivationRecorder({id(m): name for name, m in copy.model.named_modules()})
    with taps:
        loss = copy.loss(context.workload.batches[0])
    loss.backward(torch.full_like(loss, scale))
    taps.settle()
    seen: dict[str, int] = {}
    found: dict[tuple[str, int], TensorStats] = {}
    for call in taps.calls:
        index = seen[call.name] = seen.get(call.name, -1) + 1
        if _judged(call):
            found[call.name, index] = call.gradients[0]
    return found


def _judged(call: Call) -> Any:
    return call.dtype == "float16" and len(call.gradients) == 1 and call.kind in ("linear", "conv", "norm", "recurrent", "attention")


def _compared(plain: dict[tuple[str, int], TensorStats], scaled: dict[tuple[str, int], TensorStats], scale: float) -> HalfGradients | None:
    flushed = entries = 0.0
    worst, largest = "", 0.0
    for key, after in scaled.items():
        before = plain.get(key)
        if before is None or not before.count:
            continue
        lost = max(0.0, before.zeros - after.zeros)
        flushed += lost * before.count
        entries += before.count
        if lost > largest:
            worst, largest = key[0], lost
    return HalfGradients(scale, flushed / entries, int(entries), worst, largest) if entries else None
