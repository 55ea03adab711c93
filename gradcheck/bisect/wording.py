"""What a parting means, in words: where, of what kind, and what is behind it."""

import math
from collections.abc import Sequence

from gradcheck.analysis.wording import number
from gradcheck.bisect.compare import ROUNDING, UNSEEDED, Comparison, Pair
from gradcheck.bisect.recording import Event, RunRecording

# Of a first difference over it, up to which it is of the size of rounding. Measured: one process against two part by 1.3, autocast to
# bfloat16 by 0.9; an eps of 1e-6 in place of 1e-5 in a LayerNorm by 190. (heuristic)
TIMES = 4.0
DROPS = ("Dropout", "DropPath", "StochasticDepth")
SHUFFLED = 0.05  # share of A's samples that B sees too, from which on they are the same in another order
AFTER = 10.0  # times a distance of rounding: the tolerance that is proposed, as rounding grows from layer to layer


def name_of(name: str) -> str:
    return f"`{name}`" if name else "the model"


def headline(pair: Pair, runs: Sequence[RunRecording], b: RunRecording, cut: bool = False) -> str:
    """`forward of `blocks.1.attn` at step 0`, with what differs. Of the first parting: everything before it agrees."""
    said, event = place(pair), pair.event
    if pair.a is None or pair.b is None:
        return said
    agree = "" if cut else ", while all activations agree"
    match event.kind:
        case "input":
            return f"{said}: {_data(pair, runs[0], b)}"
        case "forward":
            facts = runs[0].layers.get(event.name)
            own = ", in its own code: its layers and inputs agree" if facts is not None and facts.holds else ""
            hidden = any(event.name in run.compiled for run in (*runs, b))
            return f"{said}{', somewhere inside: it is compiled' if hidden else own}"
        case "loss":
            return f"{said} while all activations agree: the targets, or the loss function"
        case "edited":
            return f"{said}: it is changed after the backward pass (clipping, scaling, averaging)"
        case "update":
            return f"{said}, while all gradients agree: the optimizer or its settings"
        case "weight" | "buffer":
            return said
        case _:
            return f"{said}{agree}"


def place(pair: Pair) -> str:
    """Where two runs differ, and by how much; no more can be said about a later parting, since others came before it."""
    event = pair.event
    name, step = _names(pair), pair.step
    if pair.a is None or pair.b is None:
        return _only(pair, event, "A" if pair.a is not None else "B")
    return _PLACES[event.kind].format(name=name, step=step) + _by(pair)


_PLACES = {
    "weight": "initial weights differ at {name}",
    "buffer": "initial buffers differ at {name}",
    "input": "the inputs of step {step} differ",
    "forward": "forward of {name} at step {step}",
    "loss": "the loss of step {step} differs",
    "backward": "backward at the output of {name} at step {step}",
    "gradient": "gradient of {name} at step {step}",
    "edited": "gradient of {name} as the step {step} takes it",
    "update": "update of {name} at step {step}",
    "state": "buffer {name} after step {step}",
}


def _names(pair: Pair) -> str:
    if pair.a is None or pair.b is None or pair.a.name == pair.b.name:
        return name_of(pair.event.name)
    return f"{name_of(pair.a.name)} ({name_of(pair.b.name)} in B)"


def _by(pair: Pair) -> str:
    assert pair.a is not None and pair.b is not None
    if pair.distance is None:
        return f" in shape: {_shape(pair.a)} against {_shape(pair.b)}"
    return " (one of them is not finite)" if math.isinf(pair.distance) else f", by {number(pair.distance)} of its norm"


def _shape(event: Event) -> str:
    return "x".join(map(str, event.print.shape)) or "a number"


def _only(pair: Pair, event: Event, side: str) -> str:
    what = {
        "backward": "gradient comes back to the output of",
        "gradient": "there is a gradient of",
        "edited": "the gradient is changed of",
    }
    return f"at step {pair.step} {what.get(event.kind, 'the optimizer updates')} {name_of(event.name)} in {side} only"


def _data(pair: Pair, a: RunRecording, b: RunRecording) -> str:
    seen = {s for samples in b.samples for s in samples}
    mine = [s for samples in a.samples for s in samples]
    if not mine or pair.distance is None:
        return "other data"
    shared = sum(s in seen for s in mine) / len(mine)
    return f"data order ({100 * shared:.0f} % of A's samples are among B's)" if shared >= SHUFFLED else "other data, or random augmentation"


def causes(pair: Pair, runs: Sequence[RunRecording], b: RunRecording) -> list[str]:
    """What the recordings say about the cause, and what to look at."""
    a = runs[0]
    event = pair.event
    found = [*_settings_of_layer(pair, a, b), *_modes(pair), *_random(pair, runs, b), *_settings_of_optimizer(pair, a, b), *_rounding(pair)]
    where = event.kind in ("forward", "backward") and next(
        (f.place for run, e in ((a, pair.a), (b, pair.b)) if e and (f := run.layers.get(e.name)) and f.place), ""
    )
    if where:
        found.append(f"made at {where}")
    return found


def _settings_of_layer(pair: Pair, a: RunRecording, b: RunRecording) -> list[str]:
    one, other = (run.layers.get(e.name) if e else None for run, e in ((a, pair.a), (b, pair.b)))
    if one is None or other is None or (one.type, one.settings) == (other.type, other.settings) or one.holds:
        return []
    return [f"A has {one.type}({one.settings}), B has {other.type}({other.settings})"]


def _modes(pair: Pair) -> list[str]:
    if pair.a is None or pair.b is None or pair.a.note == pair.b.note:
        return []
    return [f"it is in evaluation mode in {'A' if pair.a.note else 'B'} only"]


def _random(pair: Pair, runs: Sequence[RunRecording], b: RunRecording) -> list[str]:
    """If randomness may be the cause: the generators' states at the beginning of the step."""
    event = pair.event
    facts = runs[0].layers.get(event.name)
    drops = event.kind == "forward" and facts is not None and facts.type.startswith(DROPS)
    if event.kind not in ("forward", "input", "loss") or pair.step >= min(len(r.random) for r in (*runs, b)):
        return []
    states, theirs = [run.random[pair.step] for run in runs], b.random[pair.step]
    own = [n for n in states[0] if all(s.get(n) == states[0][n] for s in states)]  # that are seeded
    other = [n for n in own if n in theirs and states[0][n] != theirs[n]]
    if not other:
        return ["the random state at the beginning of the step is the same"] if drops else []
    return [f"the random state of {' and '.join(other)} at the beginning of step {pair.step} differs: the seed, or what was drawn before"]


def _settings_of_optimizer(pair: Pair, a: RunRecording, b: RunRecording) -> list[str]:
    if pair.a is None or pair.b is None or pair.a.kind != "update":
        return []
    one, other = (_at(run.settings.get(e.name, []), pair.step) for run, e in ((a, pair.a), (b, pair.b)))
    changed = [f"{k} {one.get(k, '-')} against {other.get(k, '-')}" for k in dict.fromkeys((*one, *other)) if one.get(k) != other.get(k)]
    return [", ".join(changed)] if changed else ["the settings of the optimizers are the same: their state, or how the step is taken"]


def _at(known: Sequence[tuple[int, dict[str, str]]], step: int) -> dict[str, str]:
    return next((s for t, s in reversed(known) if t <= step), {})


def _rounding(pair: Pair) -> list[str]:
    if pair.a is None or pair.b is None or not pair.distance:
        return []
    formats = [e.print.dtype for e in (pair.a, pair.b)]
    unit = max((ROUNDING[f] for f in formats if f in ROUNDING), default=0.0)
    said = [f"A computes it in {formats[0]}, B in {formats[1]}"] if formats[0] != formats[1] else []
    if pair.distance <= TIMES * unit:
        coarse = max(formats, key=lambda f: ROUNDING.get(f, 0.0))
        look = number(AFTER * pair.distance)
        said.append(f"this is of the size of {coarse}'s rounding ({number(unit)}): sums in another order; --tolerance {look} looks past it")
    return said


def noise(found: Comparison, runs: Sequence[RunRecording]) -> str:
    """How well A repeats itself."""
    pair = found.noisy
    if pair is None or pair.a is None:
        return f"A repeats itself bit for bit ({len(runs)} runs)"
    most = max(found.noise.values(), default=0.0)
    where = f"{pair.a.kind} of {name_of(pair.a.name)} at step {pair.step}"
    return f"A repeats itself up to {number(most)} ({len(runs)} runs; from the {where} on)"


def unseeded(found: Comparison) -> str:
    """Why runs of A cannot be compared: they begin with different weights, or see different data. "" if they do the same."""
    pair = found.noisy
    if pair is None or pair.a is None:
        return ""
    far = pair.distance is None or pair.distance > UNSEEDED
    if not far:
        return ""
    what = {
        "weight": f"its initial weights differ from run to run at {name_of(pair.a.name)}",
        "buffer": f"its initial buffers differ from run to run at {name_of(pair.a.name)}",
        "input": f"its inputs of step {pair.step} differ from run to run",
    }.get(pair.a.kind, f"the {pair.a.kind} of {name_of(pair.a.name)} at step {pair.step} differs from run to run")
    return f"A does not repeat itself: {what}"
