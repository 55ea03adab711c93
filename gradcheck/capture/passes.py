"""What a backward pass reaches, and what data it was computed from."""

import torch

from gradcheck.capture.events import BackwardPass
from gradcheck.capture.replay import calls_behind
from gradcheck.instrument.loader_batches import digest
from gradcheck.workload.sharding import as_held

MOST_LEAVES = 200_000  # autograd nodes that are walked over for the leaves of one loss


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
            (held,) = as_held([variable])
            found[id(held)] = held
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                pending.append(parent)
    return found


def fingerprint(passes: list[BackwardPass], since: int) -> int | None:
    """Of the tensors that the modules were called with after the call `since`."""
    inputs = [c.value for p in passes if p.ref is not None for n in calls_behind(p.ref.node, since) for c in n.constants()]
    return hash(tuple(map(digest, inputs))) if inputs else None
