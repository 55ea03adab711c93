"""What the rules about watched runs share."""

from statistics import median

from gradcheck.types.gauges import Gauge

NOT_WATCHED = "no run was watched"
WINDOW = 4  # measured steps that are compared


def others(count: int, what: str = "tensor") -> str:
    return f", and {count} more {what}s" if count > 1 else f", and 1 more {what}" if count else ""


def grows(gauge: Gauge) -> tuple[float, float] | None:
    """Medians of the last quarter of its values and of the quarter before; None of fewer than four times `WINDOW`."""
    quarter = len(gauge.values) // 4
    if quarter < WINDOW:
        return None
    return median(gauge.values[-2 * quarter : -quarter]), median(gauge.values[-quarter:])
