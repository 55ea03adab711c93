"""What a loss is made of, read off its recorded calls."""

from typing import Any

from gradcheck.capture.nodes import Constant, Node, Ref
from gradcheck.instrument.loss_calls import reduction_of as reduction_given

DIVISIONS = frozenset(("__truediv__", "div", "true_divide", "divide", "div_", "__itruediv__"))
PRODUCTS = frozenset(("__mul__", "__rmul__", "mul", "multiply", "mul_", "__imul__"))
SAME = frozenset(("requires_grad_", "float", "to", "squeeze", "clone", "contiguous", "view", "reshape"))
SUMS = frozenset(("__add__", "__radd__", "add", "__iadd__", "add_"))
MEANS = frozenset(("mean", "nanmean"))


def scale_of(ref: Ref) -> float | None:
    """The factor that a loss has been given after its mean was taken; None when what is scaled is not a mean, or cannot be told."""
    factor, node = 1.0, ref.node
    for _ in range(50):
        name = getattr(node.call, "__name__", "")
        if node.call is None:
            return None if "num_items_in_batch" in node.kwargs else factor
        operands = list(node.args[:2])
        live = [x for x in operands if isinstance(x, Ref)]
        if name in SUMS and live:
            node = live[0].node
            continue
        if name in DIVISIONS | PRODUCTS and len(live) == 1 and isinstance(operands[0], Ref | float | int):
            other = number_of(next((x for x in operands if not isinstance(x, Ref)), None))
            if other is None or not other:
                return None
            factor = factor / other if name in DIVISIONS else factor * other
        elif name not in SAME or not live:
            return factor if _is_mean(node, name) else None
        node = live[0].node
    return None


def _is_mean(node: Node, name: str) -> bool:
    if name in MEANS:
        return True
    return is_loss(name) and reduction_of(node) == "mean"


def is_loss(name: str) -> bool:
    return "loss" in name or name.endswith(("cross_entropy", "kl_div", "_with_logits"))


def reduction_of(node: Node) -> str:
    return reduction_given(node.call, node.args, node.kwargs) if node.call is not None else "mean"


def number_of(value: Any) -> float | None:
    if isinstance(value, (int, float)):
        return float(value)
    if isinstance(value, Constant) and value.value.numel() == 1:
        return float(value.value.item())
    return None
