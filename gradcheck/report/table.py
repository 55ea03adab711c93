"""The cost of each layer, and what narrower number formats could not hold of it, as tables."""

from collections.abc import Sequence

from gradcheck.analysis.number_formats import FORMATS, loss_scale_exponent, lost, measured
from gradcheck.analysis.wording import percent
from gradcheck.report.formatting import clean, scaled
from gradcheck.types.layers import Layer
from gradcheck.types.measurement import Measurement

TOP = 10
HEADER = ("layer", "type", "output", "parameters", "FLOPs", "activation", "forward ms", "backward ms")
LEFT = 3  # columns that are aligned to the left
NAME_WIDTH = 44


def profile_table(m: Measurement, *, everything: bool = False) -> list[str]:
    """Lines: the layers that take longest (all of them with `everything`), how many more there are, and the totals.

    FLOPs count the forward pass, a multiplication and an addition as two. Containers are left out: they include others.
    """
    layers = [x for x in m.layers if x.profile is not None and x.kind != "container"]
    if not layers:
        return ["no profile was measured"]
    layers.sort(key=_milliseconds, reverse=True)
    shown = layers if everything else layers[:TOP]
    rows = [HEADER, *(_row(x) for x in shown), _total(m, layers)]
    lines = aligned(rows)
    more = len(layers) - len(shown)
    note = [f"{more} more layers: --show-all"] if more else []
    return [*lines[:-1], *note, lines[-1]]


def aligned(rows: Sequence[tuple[str, ...]], left: int = LEFT) -> list[str]:
    """The rows as lines; so many columns are aligned to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(c.ljust(w) if i < left else c.rjust(w) for i, (c, w) in enumerate(zip(r, widths, strict=True))).rstrip() for r in rows
    ]


def short_name(layer: str) -> str:
    name = clean(layer) or "(model)"
    return name if len(name) <= NAME_WIDTH else "…" + name[1 - NAME_WIDTH :]


def _milliseconds(layer: Layer) -> float:
    assert layer.profile is not None
    return layer.profile.forward_ms + (layer.profile.backward_ms or 0.0)


def _row(layer: Layer) -> tuple[str, ...]:
    p = layer.profile
    assert p is not None
    shape = "x".join(str(n) for n in layer.output_shape)
    return (
        short_name(layer.name),
        clean(layer.type),
        shape,
        scaled(p.parameters),
        scaled(p.flops),
        _bytes(p.activation_bytes),
        _time(p.forward_ms),
        _time(p.backward_ms),
    )


def _total(m: Measurement, layers: list[Layer]) -> tuple[str, ...]:
    """Sums over the layers; parameters over the whole model, and the root's own time where that was measured."""
    profiles = [x.profile for x in layers if x.profile is not None]
    root = m.layer("")
    whole = root.profile if root is not None else None
    flops = [p.flops for p in profiles if p.flops is not None]
    forward = whole.forward_ms if whole else sum(p.forward_ms for p in profiles)
    backward: float | None = sum(p.backward_ms or 0.0 for p in profiles)
    if whole is not None and whole.backward_ms is not None:
        backward = whole.backward_ms
    elif all(p.backward_ms is None for p in profiles):
        backward = None
    return (
        "total",
        "",
        "",
        scaled(sum(p.count for p in m.parameters)),
        scaled(sum(flops) if flops else None),
        _bytes(sum(p.activation_bytes for p in profiles)),
        _time(forward),
        _time(backward),
    )


def _bytes(count: int) -> str:
    return scaled(count) + "B" if count >= 1000 else f"{count} B"


def _time(milliseconds: float | None) -> str:
    return "-" if milliseconds is None else f"{milliseconds:.3f}" if milliseconds < 10 else f"{milliseconds:.1f}"


NOTE = "shares that would become 0 or overflow; gradients in fp16 after the best loss scale, fp8 after a factor for each tensor or block"


def forecast_table(m: Measurement, *, everything: bool = False) -> list[str]:
    """Lines: a header, the layers that lose most in any format (all of them with `everything`), a note. Empty if nothing is known."""
    rows: list[tuple[float, tuple[str, ...]]] = []
    for kind, layers in measured(m).items():
        for name, exponents in layers.items():
            scales = [loss_scale_exponent(layers, f) if kind == "gradients" and f.name == "fp16" else 0 for f in FORMATS]
            shares = [lost(exponents, f, scale).total for f, scale in zip(FORMATS, scales, strict=True)]
            rows.append((max(shares), (short_name(name), kind, *(percent(s) for s in shares))))
    if not rows:
        return []
    rows.sort(key=lambda row: -row[0])
    shown = rows if everything else [row for row in rows if row[0] > 0][:TOP]
    if not shown:
        return [f"{', '.join(f.name for f in FORMATS)} could hold all of the {len(rows)} activations, gradients and weights looked at"]
    cells = [("layer", "numbers", *(f.name for f in FORMATS)), *(row for _, row in shown)]
    more = len(rows) - len(shown)
    return [*aligned(cells, left=2), *([f"{more} more rows: --show-all"] if more else []), NOTE]
