"""What a loss is made of, read off its recorded calls."""

from __future__ import annotations

from typing import Any

from gradcheck.capture.nodes import Constant, Node, Ref

_DIVISIONS = frozenset(("__truediv__", "div", "true_divide", "divide", "div_", "__itruediv__"))
_PRODUCTS = frozenset(("__mul__", "__rmul__", "mul", "multiply", "mul_", "__imul__"))
_SAME = frozenset(("requires_grad_", "float", "to", "squeeze", "clone", "contiguous", "view", "reshape"))
_SUMS = frozenset(("__add__", "__radd__", "add", "__iadd__", "add_"))
_MEANS = frozenset(("mean", "nanmean"))


def scale_of(ref: Ref) -> float | None:
    """The factor that a loss has been given after its mean was taken; None when what is scaled is no mean, or cannot be told."""
    factor, node = 1.0, ref.node
    for _ in range(50):
        name = getattr(node.call, "__name__", "")
        if node.call is None:
            return None if "num_items_in_batch" in node.kwargs else factor
        operands = list(node.args[:2])
        live = [x for x in operands if isinstance(x, Ref)]
        if name in _SUMS and live:
            node = live[0].node
            continue
        if name in _DIVISIONS | _PRODUCTS and len(live) == 1 and isinstance(operands[0], Ref | float | int):
            other = _number(next((x for x in operands if not isinstance(x, Ref)), None))
            if other is None or not other:
                return None
            factor = factor / other if name in _DIVISIONS else factor * other
        elif name not in _SAME or not live:
            return factor if _is_mean(node, name) else None
        node = live[0].node
    return None


def _is_mean(node: Node, name: str) -> bool:
    if name in _MEANS:
        return True
    return ("loss" in name or name.endswith(("cross_entropy", "kl_div", "_with_logits"))) and _reduction(node) == "mean"


def _reduction(node: Node) -> str:
    return str(node.kwargs.get("reduction", next((x for x in node.args if isinstance(x, str)), "mean")))


def _number(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Constant) and value.value.numel() == 1:
        return float(value.value.item())
    return None
