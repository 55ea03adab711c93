"""The columns of a log, whatever wrote it, and which of them rules read."""

import itertools
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal, get_args

from gradcheck.errors import ConfigError
from gradcheck.types.training import LogColumn, LogFacts

Role = Literal["loss", "evaluation", "rate", "norm", "scale"]
ROLES: tuple[Role, ...] = get_args(Role)
MOST_POINTS = 20_000  # of a column that are kept: of longer ones the extremes of equal parts
STEPS = (
    *("step", "global_step", "_step", "iteration", "iter", "trainer_global_step", "train_global_step", "steps", "num_updates", "update"),
    *("total_timesteps", "time_total_timesteps", "epoch"),
)

_TRAINING = ("train", "training", "tr")
_EVALUATION = ("eval", "evaluation", "val", "valid", "validation", "test", "dev")
_PARTS = ("actor", "critic", "policy", "value", "q", "d", "g", "discriminator", "generator")  # of a game: one alone need not fall
_FACTORS = ("scale", "scaler", "weight")  # what a loss is multiplied by
_WHOLE = ("total", "mean", "avg", "average", "overall", "sum", "joint")  # of several losses
# Names of columns in lower case, with "_" for all that is no letter or digit; the first one that a log has counts.
NAMES: Mapping[Role, tuple[str, ...]] = {
    "loss": (
        "loss",
        *(f"{t}_{x}" for t in _TRAINING for x in ("loss", "loss_step", "total_loss")),
        *(f"loss_{t}" for t in _TRAINING),
        *(f"{t}_loss_epoch" for t in _TRAINING),
        "total_loss",
        "loss_step",
        "batch_loss",
        "loss_epoch",
        "gradcheck_loss",
    ),
    "evaluation": (*(f"{e}_loss" for e in _EVALUATION), *(f"loss_{e}" for e in _EVALUATION), *(f"{e}_loss_epoch" for e in _EVALUATION)),
    "rate": ("learning_rate", "lr", "train_learning_rate", "train_lr", "lr_0", "learning_rate_0", "gradcheck_learning_rate"),
    "norm": (
        *(
            name
            for g in ("grad", "gradient")
            for name in (f"{g}_norm", f"train_{g}_norm", f"{g}_norm_total", f"total_{g}_norm", f"{g}norm")
        ),
        "gnorm",
        "gradcheck_gradient_norm",
    ),
    "scale": ("loss_scale", "grad_scale", "scaler_scale"),
}
KINDS = ("loss", "mse", "nll", "bce", "ce")  # words for losses; where no column is called by one, the next is looked for
_CLIPS = ("max_grad_norm", "gradient_clip_val", "grad_clip", "clip_grad_norm", "clip_grad", "max_norm", "gradient_clipping")


@dataclass
class Table:
    """`columns`: name -> (step, value), in the order in which they were written. `settings`: of the training, where they are known."""

    format: str
    columns: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    settings: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, step: float, value: Any) -> None:
        """Notes a number; anything else is left out."""
        number = as_number(value)
        if number is not None:
            self.columns.setdefault(name, []).append((step, number))

    def add_rows(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one moment each. Their step is a column of that meaning, which goes on where an epoch begins; else their number."""
        whole = [dict(flat(row)) for row in rows]
        known = [{plain(name): name for name in row} for row in whole]
        keys = [next((k[s] for s in map(plain, STEPS) if s in k and _is_step(r[k[s]])), None) for r, k in zip(whole, known, strict=True)]
        epochs = [(r[key], tuple(r)) for r, k, key in zip(whole, known, keys, strict=True) if key is not None and key == k.get("epoch")]
        changes = sum(a[0] != b[0] for a, b in itertools.pairwise(epochs)) + 1
        several = 2 * changes * len({k for _, k in epochs}) < len(epochs)  # rows in an epoch, which is no step then
        done, last, epoch = 0.0, -math.inf, math.inf  # steps of the epochs before, and the row before
        for index, (row, names, key) in enumerate(zip(whole, known, keys, strict=True)):
            step = float(index)
            if key is not None and not (several and key == names.get("epoch")):
                step = float(row[key])
                if key != names.get("epoch"):
                    now = as_number(row.get(names.get("epoch", ""))) or -math.inf
                    done += last if step <= last and now > epoch else 0.0
                    last, epoch = step, now
            for name, value in row.items():
                if name != key:
                    self.add(name, done + step, value)


def _is_step(value: Any) -> bool:
    number = as_number(value)
    return number is not None and math.isfinite(number)


def plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def as_number(value: Any) -> float | None:
    """Also of "nan" and "inf" as text; None for what is not a number."""
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, str) and _BROKEN.match(value):
        return math.nan
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


_BROKEN = re.compile(r"\s*[-+]?(?:nan\(|1\.#|#num)", re.IGNORECASE)  # as C libraries and spreadsheets write what is no number


def flat(row: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    for name, value in row.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        else:
            yield f"{prefix}{name}", value


_Found = tuple[str, list[tuple[float, float]]]  # name and points, as they were written


def facts(table: Table, columns: Mapping[str, str], clip: float | None = None) -> LogFacts:
    """`columns`: role -> the user's choice. Raises ConfigError for a column that the log has not, and where none is a loss."""
    for kind in KINDS:
        chosen = {role: _column(table, role, columns.get(role), kind) for role in ROLES}
        if chosen["loss"] is not None or chosen["evaluation"] is not None:
            break
    if chosen["loss"] is None and "evaluation" not in columns:
        chosen |= _in_parts(table)
    used = {c[0] for c in chosen.values() if c is not None}
    others = tuple(name for name in table.columns if name not in used)
    if chosen["loss"] is None and chosen["evaluation"] is None:
        shown = ", ".join(others[:12]) or "none"
        raise ConfigError(f"the log has no column that looks like a loss; its columns: {shown}", hint="name it: --column loss=NAME")
    runs = _keep_last_run(chosen)
    settings = {plain(name).rpartition("__")[2]: as_number(value) for name, value in table.settings.items()}
    known = next((v for name in _CLIPS if (v := settings.get(name)) is not None and v > 0), None)
    said = f"{table.format}, the last of {runs} runs" if runs > 1 else table.format
    curves = {role: _curve(*found) if found is not None else None for role, found in chosen.items()}
    return LogFacts(said, **curves, clip=clip if clip is not None else known, others=others)


def _column(table: Table, role: Role, wanted: str | None, kind: str) -> _Found | None:
    if wanted is not None and wanted not in table.columns:
        raise ConfigError(f"the log has no column {wanted!r}", hint=f"its columns: {', '.join(list(table.columns)[:20])}")
    known = {plain(name): name for name in reversed(table.columns)}
    name = wanted or next((known[n] for n in NAMES[role] if n in known), None) or _resembling(known, role, kind)
    return (name, table.columns[name]) if name is not None else None


def _resembling(known: Mapping[str, str], role: Role, kind: str) -> str | None:
    """A column whose name is none of the usual ones. `known`: plain name -> name, the last column first; `kind`: a word for losses."""
    words = {n: n.split("_") for n in reversed(list(known))}
    if role == "rate":  # Lightning's monitor names them after the optimizer
        return next((known[n] for n in words if n.startswith(("lr_", "train_lr_"))), None)
    if role in ("norm", "scale"):
        return None
    kinds = {n: w for n, w in words.items() if kind in w and w[-1] not in _FACTORS}
    losses = [n for n, w in kinds.items() if any(x in _EVALUATION for x in w) == (role == "evaluation")]
    if role == "evaluation":  # of several sets the first
        return known[losses[0]] if losses else None
    whole = [n for n in losses if any(x in _WHOLE for x in words[n])] or losses
    return known[whole[0]] if len(whole) == 1 and not any(x in _PARTS for x in words[whole[0]]) else None


def _in_parts(table: Table) -> dict[Role, _Found | None]:
    """Where only the parts of a loss are logged, of the training and of an evaluation: what they add up to."""
    known = {plain(name): name for name in table.columns}
    for t, e in ((t, e) for t in _TRAINING for e in _EVALUATION):
        parts = [n.removeprefix(f"{t}_") for n in known if n.startswith(f"{t}_") and "loss" in n.split("_")]
        parts = [p for p in parts if f"{e}_{p}" in known and not any(x in _PARTS for x in p.split("_"))]
        if len(parts) > 1:
            return {"loss": _sum(table, [known[f"{t}_{p}"] for p in parts]), "evaluation": _sum(table, [known[f"{e}_{p}"] for p in parts])}
    return {}


def _sum(table: Table, names: list[str]) -> _Found:
    columns = [dict(table.columns[name]) for name in names]
    points = [(step, sum(c[step] for c in columns)) for step in columns[0] if all(step in c for c in columns)]
    return " + ".join(n.strip() for n in names), points


FEW = 5  # values at an end of a run whose median is its level


def _keep_last_run(chosen: dict[Role, _Found | None]) -> int:
    """Of several runs in one log only the last one is left. Returns their number. Steps that are counted from each epoch on are one run."""
    lead = chosen["loss"] or chosen["evaluation"]
    assert lead is not None
    parts, course = {role: _parts(found[1]) for role, found in chosen.items() if found is not None}, _parts(lead[1])
    begins = [not _goes_on(a, b) for a, b in itertools.pairwise(course)]  # after each part, a run
    first = max((i + 1 for i, new in enumerate(begins) if new), default=0)
    for role, found in chosen.items():
        if found is not None and len(course) > 1 and len(parts[role]) != len(course):
            chosen[role] = None  # it cannot be told which part is whose
        elif found is not None:
            points, done = [], 0.0
            for part in parts[role][first:]:
                points += [(done + step, value) for step, value in part]
                done = points[-1][0]
            chosen[role] = found[0], points
    return sum(begins) + 1


def _parts(points: list[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Where the steps begin again. A resumption, which goes back by some, voids what came after its step."""
    parts = [points[:1]]
    for step, value in points[1:]:
        part = parts[-1]
        if step < part[-1][0] and step <= part[0][0]:
            parts.append(part := [])
        while part and part[-1][0] >= step:
            part.pop()
        part.append((step, value))
    return parts if 2 * len(parts) <= len(points) else [sorted(points, key=lambda p: p[0])]  # else they are in no order


def _goes_on(before: list[tuple[float, float]], after: list[tuple[float, float]]) -> bool:
    """Whether the loss begins where it was at the end of the part before, and not where that began."""
    old, new = ([v for _, v in part if math.isfinite(v)] for part in (before, after))
    if not old or not new or not math.isfinite(before[-1][1]):
        return False
    start = median(new[:FEW])
    return abs(start - median(old[-FEW:])) <= abs(start - median(old[:FEW]))


def _curve(name: str, points: list[tuple[float, float]]) -> LogColumn:
    """Sorted by step; of a step that was written twice the last value counts."""
    latest = dict(points)
    ordered = sorted(latest.items())
    if len(ordered) > MOST_POINTS:
        size = -(-len(ordered) // (MOST_POINTS // 2))
        parts = (ordered[i : i + size] for i in range(0, len(ordered), size))
        ordered = [point for part in parts for point in _extremes(part)]
    return LogColumn(name, tuple(s for s, _ in ordered), tuple(v for _, v in ordered))


def _extremes(part: list[tuple[float, float]]) -> list[tuple[float, float]]:
    broken = next((p for p in part if not math.isfinite(p[1])), None)
    ends = [min(part, key=_height), broken or max(part, key=_height)]
    return sorted(dict(ends).items())


def _height(point: tuple[float, float]) -> float:
    return point[1] if not math.isnan(point[1]) else math.inf
