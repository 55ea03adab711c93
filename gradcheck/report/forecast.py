"""What narrower number formats could not hold of each layer, as a table."""

from __future__ import annotations

from gradcheck.analysis.number_formats import FORMATS, loss_scale_exponent, lost, measured
from gradcheck.analysis.wording import percent
from gradcheck.report.table import TOP, aligned, short_name
from gradcheck.types.measurement import Measurement

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
