"""Writing to a tensor: which functions do, and what a tensor is after its part was written to."""

import torch

Tensor = torch.Tensor
_IN_PLACE = frozenset(f"__i{name}__" for name in "add sub mul truediv floordiv mod pow and or xor lshift rshift matmul".split()) | {
    "__setitem__"
}


def is_in_place(name: str) -> bool:
    """Whether a function of torch by this name changes its first argument."""
    return name in _IN_PLACE or (name.endswith("_") and not name.endswith("__"))


def written(whole: Tensor, part: Tensor, size: tuple[int, ...], stride: tuple[int, ...], start: int) -> Tensor:
    """`whole` with `part` in its place; unchanged if the part is a view of it, since then it has been written already."""
    if part._base is whole:
        return whole
    result = whole.clone()
    result.as_strided(size, stride, start).copy_(part)
    return result
