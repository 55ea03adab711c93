"""Two saved runs of scan or watch, compared as recordings are: by norms, means and deviations at measured steps. No torch here."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from gradcheck import saved_run
from gradcheck.bisect.recording import SKETCH, Event, Kind, LayerFacts, Print, RunRecording
from gradcheck.bisect.story import BisectOrders, Side, bisected
from gradcheck.errors import ConfigError
from gradcheck.types.bisection import Bisection
from gradcheck.types.layers import Layer, TensorStats
from gradcheck.types.measurement import Measurement
from gradcheck.types.parameters import Parameter
from gradcheck.types.training import UNBINNED

DIGITS = 10.0 ** (1 - saved_run.DIGITS)  # relative: numbers are saved with so many
LISTED = 6  # steps that are told


def are_saved(a: str, b: str | None) -> bool:
    """Whether both are saved runs. Raises ConfigError where one is, and the other a program or a recording of one."""
    kinds = [x is not None and x.endswith(".json") and Path(x).is_file() for x in (a, b)]
    if b is not None and any(kinds) and not all(kinds):
        raise ConfigError("a saved run is compared with another saved run", hint="gradcheck bisect before.json after.json")
    return all(kinds)


def bisected_runs(a: str, b: str, orders: BisectOrders) -> Bisection:
    """Where two saved runs part. Raises SavedRunError for what is none, ConfigError where no step was measured in both."""
    one, other = (saved_run.load(Path(x)).measurement for x in (a, b))
    steps = [t for t in one.measured_steps if t in other.measured_steps]
    if not steps:
        raise ConfigError("no step was measured in both runs", hint="save them with the same `gradcheck watch --every N`")
    mine, theirs = recording(one, steps), recording(other, steps)
    found = bisected(Side(a, (mine, mine)), Side(b, (theirs,)), replace(orders, steps=0, tolerance=max(orders.tolerance, DIGITS)))
    shown = ", ".join(map(str, steps[:LISTED])) + (f" and {len(steps) - LISTED} more" if len(steps) > LISTED else "")
    note = f"compared by norms, means and deviations, at the steps measured in both ({shown}): where these agree, tensors may differ"
    noise = "how well A repeats itself is not known: --tolerance says what counts as none"
    return replace(found, noise=noise, notes=(note, *found.notes))


def recording(m: Measurement, steps: Sequence[int]) -> RunRecording:
    """What a saved run holds of some of its measured steps, as events. The other steps are empty."""
    made: list[list[Event]] = [[] for _ in range(max(steps) + 1)]
    for step in steps:
        made[step] = list(_events(m, step, step == steps[0]))
    layers = {x.name: LayerFacts(x.type, "", str(x.site or ""), False) for x in m.layers}
    o = m.optimizer
    settings = {n: str(v) for n, v in (("lr", o.lr), ("momentum", o.momentum), ("betas", o.betas), ("weight_decay", o.weight_decay))}
    settings["optimizer"] = o.name
    return RunRecording(made, layers=layers, settings={p.name: [(0, settings)] for p in m.parameters})


def _events(m: Measurement, step: int, first: bool) -> Iterator[Event]:
    ran = [(x, s) for x in sorted(m.layers, key=lambda x: x.order) for s in x.snapshots if s.step == step]
    taken = [(p, s) for p in m.parameters for s in p.steps if s.step == step]
    if first:
        yield from (_of_parameter("weight", p, s.norm) for p, s in taken)
    yield from (_of_layer("forward", x, s.output) for x, s in ran if s.output is not None)
    if step < min(len(m.probe.losses), UNBINNED):
        yield Event("loss", "", 0, _print((), "float32", m.probe.losses[step]))
    yield from (_of_layer("backward", x, s.gradient) for x, s in reversed(ran) if s.gradient is not None and s.gradient.count)
    yield from (_of_parameter("gradient", p, s.gradient_norm) for p, s in taken if s.gradient_norm is not None)
    yield from (_of_parameter("update", p, s.update_ratio * s.norm) for p, s in taken if s.update_ratio is not None)


def _of_parameter(kind: Kind, p: Parameter, norm: float) -> Event:
    return Event(kind, p.name, 0, _print(p.shape, p.dtype, norm))


def _of_layer(kind: Kind, x: Layer, stats: TensorStats) -> Event:
    size = stats.count**0.5
    return Event(kind, x.name, 0, _print((stats.count,), x.dtype, stats.norm, stats.mean * size, stats.std * size))


def _print(shape: tuple[int, ...], dtype: str, norm: float, *others: float) -> Print:
    """In the place of projections stand the norm and what else is known of the size of the tensor."""
    known = (norm, *others)
    return Print(shape, dtype, "", abs(norm), tuple(known[i % len(known)] for i in range(SKETCH)))
