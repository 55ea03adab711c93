"""What it was about the arguments of a call that made its result NaN or infinite."""

from typing import Any, Literal, NamedTuple

import torch

What = Literal["zero denominators", "not above zero", "masked rows", "long targets", "no target", "empty", "one value"]

_DIVISIONS = frozenset("div div_ divide divide_ true_divide true_divide_ __truediv__ __itruediv__ __rtruediv__ __rdiv__".split())
_LOGARITHMS = frozenset("log log_ log2 log2_ log10 log10_".split())
_MEANS = frozenset(("mean", "nanmean"))
CTC = ((1, "targets"), (2, "input_lengths"), (3, "target_lengths"))
_SPREADS = frozenset("std var std_mean var_mean".split())


class Reason(NamedTuple):
    what: What
    number: int  # entries, rows or samples that it is about
    of: int


@torch.no_grad()
def reason(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reason | None:
    """Why the function `name` has no finite result; None when that is not known. It must not raise: arguments come in many forms."""
    try:
        with torch._C.DisableTorchFunction():
            return _reason(name, args, kwargs)
    except Exception:
        return None


def _reason(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reason | None:
    first = args[0] if args else kwargs.get("input")
    if name in _DIVISIONS:
        other = first if name.startswith("__r") else args[1] if len(args) > 1 else kwargs.get("other")
        return _some((other if isinstance(other, torch.Tensor) else torch.tensor(other, device="cpu")) == 0, "zero denominators")
    if name == "scaled_dot_product_attention":
        return _masked(_argument("attn_mask", 3, args, kwargs), keep=True)
    if name == "multi_head_attention_forward":
        return _masked(kwargs.get("key_padding_mask"), keep=False) or _masked(kwargs.get("attn_mask"), keep=False)
    if name in ("cross_entropy", "nll_loss"):
        return _without_target(args, kwargs)
    if name == "ctc_loss":
        return _too_long(args, kwargs)
    if not isinstance(first, torch.Tensor):
        return None
    if name in _LOGARITHMS:
        return _some(first <= 0, "not above zero")
    if name in _MEANS | _SPREADS and not first.numel():
        return Reason("empty", 0, 0)
    if name in _SPREADS:
        axes = args[1] if len(args) > 1 else kwargs.get("dim")
        axes = range(first.dim()) if axes is None or isinstance(axes, bool) else (axes,) if isinstance(axes, int) else axes
        values = 1
        for axis in axes:
            values *= first.shape[axis]
        return Reason("one value", 1, 1) if values == 1 else None
    if name in ("softmax", "log_softmax"):
        axis = _argument("dim", 1, args, kwargs)
        return _some((first == -torch.inf).all(axis), "masked rows") if isinstance(axis, int) else None
    return None


def _argument(name: str, place: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[place] if len(args) > place else kwargs.get(name)


def _some(which: torch.Tensor, what: What) -> Reason | None:
    count = int(which.sum())
    return Reason(what, count, which.numel()) if count else None


def _masked(mask: Any, *, keep: bool) -> Reason | None:
    """Rows of a mask that leave no key. `keep`: what True stands for in a mask of truth values."""
    if not isinstance(mask, torch.Tensor):
        return None
    hidden = (mask if not keep else ~mask) if mask.dtype == torch.bool else mask == -torch.inf
    return _some(hidden.all(-1), "masked rows")


def _without_target(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reason | None:
    """No target counts: the mean is over nothing."""
    target, skipped = _argument("target", 1, args, kwargs), kwargs.get("ignore_index", -100)
    nothing = not target.is_floating_point() and bool((target == skipped).all())
    return Reason("no target", target.numel(), target.numel()) if nothing else None


def _too_long(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Reason | None:
    """Targets that need more steps than their input has: one for each label, and a blank between equal neighbours."""
    targets, inputs, lengths = (torch.as_tensor(_argument(n, i, args, kwargs), device="cpu") for i, n in CTC)
    rows = (
        list(targets.split(lengths.tolist()))
        if targets.dim() == 1 and lengths.dim()
        else [t[:n] for t, n in zip(targets, lengths, strict=True)]
    )
    needed = [len(t) + int((t[1:] == t[:-1]).sum()) for t in rows]
    return _some(torch.tensor(needed, device="cpu") > inputs.reshape(-1), "long targets")
