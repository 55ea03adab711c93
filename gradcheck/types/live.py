"""What a watched run reports while it goes on: one Frame for each measured step."""

from collections.abc import Iterable
from dataclasses import dataclass

from gradcheck.types.finding import Finding, Severity


@dataclass(frozen=True)
class LiveLayer:
    """A layer at the last measured step."""

    name: str
    gradient: float | None = None  # rms of dL/d(output)
    update: float | None = None  # ||change|| / ||weight||
    dead: float | None = None  # share of its units


@dataclass(frozen=True)
class LiveFinding:
    severity: Severity
    code: str
    name: str
    message: str
    place: str = ""  # path:line:column


def live_findings(findings: Iterable[Finding]) -> tuple[LiveFinding, ...]:
    """Those that are not the consequence of another one."""
    return tuple(LiveFinding(f.severity, f.code, f.name, f.message, str(f.location or "")) for f in findings if f.cause is None)


@dataclass(frozen=True)
class Frame:
    step: int
    loss: float
    losses: tuple[float, ...] = ()  # over the whole run, evenly thinned
    norm: float | None = None  # of all gradients together, before clipping
    norms: tuple[float, ...] = ()  # at the measured steps
    update: float | None = None  # ||change|| / ||weight||, median over the weight matrices
    rate: float = 0.0  # learning rate
    speed: float = 0.0  # steps a second
    overhead: float | None = None  # share of the run's time that watching takes
    layers: tuple[LiveLayer, ...] = ()  # the worst first
    findings: tuple[LiveFinding, ...] = ()
    spikes: tuple[str, ...] = ()  # the last ones, in words


@dataclass(frozen=True)
class Magnitudes:
    """Entries of a tensor by size: counts[i] of those that were sampled have an absolute value in [2**(low + i), 2**(low + i + 1))."""

    low: int
    counts: tuple[int, ...]

    @property
    def edges(self) -> tuple[float, ...]:
        """log2 of the bounds of the bins, one more than there are bins."""
        return tuple(float(self.low + i) for i in range(len(self.counts) + 1))
