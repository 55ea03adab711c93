"""Which program wrote a log, told by its names and its first bytes; and reading it."""

from collections.abc import Mapping
from pathlib import Path

from gradcheck import files
from gradcheck.errors import ConfigError
from gradcheck.logs import text, trackers
from gradcheck.logs.table import Table, facts
from gradcheck.types.training import LogFacts

_EVENTS = "*tfevents*"
_NAMES = ("metrics.csv", "progress.csv", "results.csv", "scalars.json")  # Lightning, Stable-Baselines3, Ultralytics, MMEngine
_TEXT = (".csv", ".tsv", ".jsonl", ".ndjson", ".txt", ".log", ".out")


def is_log(path: Path) -> bool:
    """Whether this is a log of another program, and not a saved run of gradcheck."""
    if path.is_dir() or "tfevents" in path.name or path.suffix in (".wandb", ".db") or path.suffix.lower() in _TEXT:
        return path.exists()
    if path.suffix != ".json" or not path.is_file():
        return False
    try:
        found = files.parsed(path)
    except ValueError:
        with path.open("rb") as file:
            start = file.read(65536)
        return start[:1] == b"{" and b"\n{" in start
    except OSError:
        return False
    return isinstance(found, list) or (isinstance(found, dict) and "log_history" in found) or bool(text.lists_in(found))


def read(path: Path, columns: Mapping[str, str], clip: float | None = None) -> LogFacts:
    """`columns`: role -> name of the column. Raises ConfigError for what is not a log, or names no loss."""
    try:
        return facts(_table(path), columns, clip)
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}", hint="name the file or folder that the run logged to") from error


def _table(path: Path) -> Table:
    if path.is_dir():
        return _of_folder(path)
    if "tfevents" in path.name:
        return trackers.read_events([path])
    if path.suffix == ".db":
        return trackers.read_mlflow_database(path)
    return trackers.read_wandb(path) if path.suffix == ".wandb" else text.read(path)


def _of_folder(folder: Path) -> Table:
    """A run's folder; with Transformers, the newest checkpoint tells the whole run."""
    states = sorted(folder.rglob("trainer_state.json"), key=lambda p: p.stat().st_mtime)
    if states:
        return text.read(states[-1])
    if (folder / "metrics").is_dir():
        return trackers.read_mlflow(folder)
    for pattern in ("*.wandb", "files/wandb-history.jsonl", "wandb-history.jsonl", *_NAMES, "mlflow.db", "files/output.log"):
        found = sorted(folder.glob(pattern))
        if found:
            return _table(found[-1])
    events = [p for p in folder.glob(_EVENTS) if p.is_file()]
    if events:
        return trackers.read_events(events)
    single = sorted(p for p in folder.iterdir() if p.suffix.lower() in _TEXT and p.is_file())
    if len(single) == 1:
        return text.read(single[0])
    inside = single or sorted({p.parent for pattern in (_EVENTS, "*.wandb", *_NAMES) for p in folder.rglob(pattern)})
    if len(inside) == 1:
        return _of_folder(inside[0])
    several = f": it holds {len(inside)} {'logs' if single else 'runs'}" if inside else ""
    hint = f"name one: {', '.join(map(str, inside[:3]))}" if inside else "gradcheck reads trainer_state.json, metrics.csv, event files, ..."
    raise ConfigError(f"{folder} is not the folder of a run{several}", hint=hint)
