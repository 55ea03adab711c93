"""What a backward pass reaches, and what data it was computed from."""

from __future__ import annotations

import torch

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.replay import calls_behind
from gradcheck.capture.structures import digest_parts, shape_of

MOST_LEAVES = 200_000  # autograd nodes that are walked over for the leaves of one loss
FINGERPRINT = 4096  # numbers at each end of a tensor that its fingerprint looks at


def leaves(loss: torch.Tensor) -> dict[int, torch.Tensor]:
    """The leaves that a loss sends gradient to, by id."""
    if loss.grad_fn is None:
        return {id(loss): loss} if loss.requires_grad else {}
    found: dict[int, torch.Tensor] = {}
    seen, pending = {loss.grad_fn}, [loss.grad_fn]
    while pending and len(seen) < MOST_LEAVES:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if variable is not None:
            found[id(variable)] = variable
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return found


def fingerprint(passes: list[BackwardPass], since: int) -> int | None:
    """Of the tensors that the modules were called with after the call `since`."""
    inputs = [c.value for p in passes if p.ref is not None for n in calls_behind(p.ref.node, since) for c in n.constants()]
    return hash(tuple(map(_digest, inputs))) if inputs else None


def _digest(tensor: torch.Tensor) -> int:
    return hash((shape_of(tensor), *map(_bytes, digest_parts(tensor))))


def _bytes(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().reshape(-1)
    if flat.numel() > 2 * FINGERPRINT:
        flat = torch.cat([flat[:FINGERPRINT], flat[-FINGERPRINT:]])
    return flat.cpu().contiguous().view(torch.uint8).numpy().tobytes() if flat.numel() else b""
