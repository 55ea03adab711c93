"""A tensor in a hundred bytes: a digest shows equal bits, projections on random signs, the same in every process, show distances."""

import functools
import hashlib
import math

import torch

from gradcheck.bisect.recording import SKETCH, Print

_WIDTH = 4096  # signs of a row; those of rows are of the same table, so that 16 million numbers have signs of their own
_ROWS = 256  # that are turned into float64 together: 8 MB


def fingerprint(tensor: torch.Tensor, scale: float = 1.0) -> Print | None:
    """Of a tensor of any layout and device, divided by `scale`. Waits for the device. None for one whose numbers cannot be read."""
    try:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return _of(tensor.detach(), scale)
    except (RuntimeError, NotImplementedError, TypeError, AttributeError):
        return None


def _of(tensor: torch.Tensor, scale: float) -> Print:
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    local = getattr(tensor, "to_local", None)
    if local is not None:
        tensor = local()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    flat = tensor.to("cpu").contiguous().reshape(-1)
    if flat.is_complex():
        flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
    digest = hashlib.blake2b(flat.view(torch.uint8).numpy().data, digest_size=8).hexdigest() if scale == 1.0 and flat.numel() else ""
    square, sums = _sketch(flat, scale)
    return Print(shape, dtype, digest, math.sqrt(square), tuple(sums))


def _sketch(flat: torch.Tensor, scale: float) -> tuple[float, list[float]]:
    """The sum of the squares, and the sums with SKETCH patterns of random signs: their mean squared difference between two tensors is
    about the squared distance of these (Johnson and Lindenstrauss; Achlioptas 2003 for signs)."""
    signs = _signs()
    square, sums = 0.0, torch.zeros(SKETCH, dtype=torch.float64, device="cpu")
    for start in range(0, flat.numel(), _WIDTH * _ROWS):
        part = flat[start : start + _WIDTH * _ROWS].to(torch.float64) / scale
        square += float((part * part).sum())
        whole = part.numel() // _WIDTH * _WIDTH
        row = start // _WIDTH
        if whole:
            rows = torch.arange(row, row + whole // _WIDTH, device="cpu") % _WIDTH
            sums += ((part[:whole].view(-1, _WIDTH) @ signs) * signs[rows]).sum(0)
        if whole < part.numel():
            rest = part[whole:]
            sums += (rest @ signs[: rest.numel()]) * signs[(row + whole // _WIDTH) % _WIDTH]
    return square, sums.tolist()


@functools.cache
def _signs() -> torch.Tensor:
    """(_WIDTH, SKETCH). Drawn from its own generator, so that the program's is left alone."""
    generator = torch.Generator("cpu")
    generator.manual_seed(0)
    return torch.randint(0, 2, (_WIDTH, SKETCH), generator=generator, device="cpu").double() * 2 - 1


def rows(tensor: torch.Tensor, most: int) -> list[str]:
    """A digest of each sample of a batch, along the first dimension; none if there are more than `most`."""
    if not tensor.dim() or tensor.layout is not torch.strided or not 0 < tensor.size(0) <= most:
        return []
    with torch._C.DisableTorchFunction(), torch.no_grad():
        array = tensor.detach().to("cpu").contiguous().view(tensor.size(0), -1).view(torch.uint8).numpy()
        return [hashlib.blake2b(row.tobytes(), digest_size=4).hexdigest() for row in array]
