"""The fused recurrent cells, which torch takes on every device but the CPU, on CPU tensors."""

from __future__ import annotations

from typing import Any

import torch


def lstm(x: Any, h: Any, c: Any, b1: Any = None, b2: Any = None) -> Any:
    gates = x + h if b1 is None else x + b1 + h + b2
    i, f, g, o = gates.chunk(4, 1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    after = f * c + i * g
    return o * after.tanh(), after, torch.cat([i, f, g, o], 1)


def lstm_backward(gh: Any, gc: Any, c: Any, after: Any, gates: Any, bias: bool) -> Any:
    i, f, g, o = gates.chunk(4, 1)
    t = after.tanh()
    dh = torch.zeros_like(c) if gh is None else gh
    dc = dh * o * (1 - t * t) + (0 if gc is None else gc)
    d = torch.cat([dc * g * i * (1 - i), dc * c * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o)], 1)
    return d, dc * f, d.sum(0) if bias else None


def gru(x: Any, h: Any, before: Any, b1: Any = None, b2: Any = None) -> Any:
    (xr, xu, xn), (hr, hu, hn) = ((y if b is None else y + b).chunk(3, 1) for y, b in ((x, b1), (h, b2)))
    r, u = (xr + hr).sigmoid(), (xu + hu).sigmoid()
    n = (xn + r * hn).tanh()
    return n + u * (before - n), torch.cat([r, u, n, before, hn], 1)


def gru_backward(gh: Any, gates: Any, bias: bool) -> Any:
    r, u, n, before, hn = gates.chunk(5, 1)
    du, dn = gh * (before - n) * u * (1 - u), gh * (1 - u) * (1 - n * n)
    dr = dn * hn * r * (1 - r)
    gx, gy = torch.cat([dr, du, dn], 1), torch.cat([dr, du, dn * r], 1)
    return gx, gy, gh * u, *((gx.sum(0), gy.sum(0)) if bias else (None, None))
