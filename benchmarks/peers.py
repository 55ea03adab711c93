"""Peers of gradcheck on the workloads of predictions.py: what do they say of those that fail, and of those that train?

    python benchmarks/peers.py --seeds 1000:1060 [--peers torch-audit,torchdiag] [--environments DIR] [--json FILE]

Each peer gets an environment of its own, made once, with the versions of constraints.txt and a pinned peer;
benchmarks/peers_run.py runs in it. A peer that cannot be installed is reported as not available.
Labels are those of predictions.py: 300 steps of real training, kept beside the environments. A peer's highest severity counts
as `error`, the next one as `warning`; a workload with both counts once. Peers that watch a training watch the first 101 of
the 300 steps (benchmarks/peers_run.py says why); torchdiag, which does not, gets the untrained model and its first batch.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

VERSIONS = {"torch-audit": "0.3.0", "torchmortem": "0.1.1", "neural-observatory": "0.5.1", "torchdiag": "0.1.0"}
BESIDE = ("torch", "numpy", "scikit-learn")  # what the workloads need, in the versions of constraints.txt
HERE = Path(__file__).resolve().parent
LABEL_STEPS = 300

Row = dict[str, Any]


class NotAvailable(Exception):
    """A peer cannot be installed."""


def environments_folder() -> Path:
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    try:
        folder = Path(cache) / "gradcheck-peers"
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.gettempdir()) / "gradcheck-peers"
    return folder


def environment(peer: str, folder: Path) -> Path:
    """The interpreter of the peer's environment, which is made if it is not there or was made for other versions."""
    pins = [line for line in (HERE.parent / "constraints.txt").read_text().splitlines() if line.split("==")[0] in BESIDE]
    wanted = "\n".join([*pins, f"{peer}=={VERSIONS[peer]}"])
    home = folder / peer
    python = home / ("Scripts/python.exe" if os.name == "nt" else "bin/python")
    complete = home / "installed.txt"
    if python.exists() and complete.exists() and complete.read_text() == wanted:
        return python
    print(f"{peer}: making an environment ...", file=sys.stderr, flush=True)
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(home)],
        [str(python), "-m", "pip", "install", "--quiet", "--no-input", *wanted.split()],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            raise NotAvailable(str(error)) from error
        if done.returncode:
            said = [line for line in (done.stderr or done.stdout).splitlines() if line.strip()]
            why = [line for line in said if line.startswith("ERROR")] or said or [f"exit status {done.returncode}"]
            raise NotAvailable(why[-1].removeprefix("ERROR: "))
    complete.write_text(wanted)
    return python


def applied(peer: str, python: Path, seeds: range, steps: int | None) -> Iterator[Row]:
    """The peer's rows; where its process ends early, that workload gets a crash and the next ones a new process."""
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    environ.pop("PYTHONPATH", None)
    following = seeds.start
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "stderr").open("w+", encoding="utf-8", errors="replace") as errors:
        while following < seeds.stop:
            command = [str(python), str(HERE / "peers_run.py"), peer, f"{following}:{seeds.stop}"]
            command += ["--steps", str(steps)] if steps else []
            with subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, encoding="utf-8", cwd=scratch, env=environ
            ) as process:  # in `scratch`: a peer may write reports into its working folder
                assert process.stdout is not None
                for line in process.stdout:
                    if line.endswith("\n"):
                        yield json.loads(line)
                        following += 1
            if following < seeds.stop:
                errors.seek(0)
                last = (errors.read().strip().splitlines() or ["no message"])[-1]
                crash = f"its process ended with status {process.returncode}: {last}"
                yield {"seed": following, "error": False, "warning": False, "messages": [], "seconds": None, "crash": crash}
                following += 1


def labels(seeds: range, folder: Path) -> dict[int, str]:
    """The label of each seed, trained for unless it is kept from before for the same workloads.py and torch."""
    import torch
    from predictions import label
    from workloads import draw, train

    torch.set_num_threads(1)
    made_from = hashlib.sha256((HERE / "workloads.py").read_bytes()).hexdigest()[:16] + " torch " + torch.__version__
    kept = folder / "labels.jsonl"
    known: dict[int, float] = {}
    if kept.exists():
        for line in kept.read_text().splitlines():
            entry = json.loads(line)
            if entry["made_from"] == made_from:
                known[entry["seed"]] = entry["relative"]
    for seed in seeds:
        if seed not in known:
            known[seed] = train(draw(seed), LABEL_STEPS)
            with kept.open("a") as file:
                file.write(json.dumps({"seed": seed, "made_from": made_from, "relative": known[seed]}) + "\n")
    return {seed: label(known[seed]) for seed in seeds}


def share(rows: list[Row], *severities: str) -> str:
    count = sum(any(row[severity] for severity in severities) for row in rows)
    return f"{count / len(rows):4.0%} ({count}/{len(rows)})" if rows else "none"


def summary(named: dict[str, str], rows: dict[str, list[Row] | str]) -> str:
    """`named` says which peer is meant, with its version, `rows` what became of it: its rows, with labels, or why there are none."""
    heads = ("", "fails: error", "or warning", "trains: error", "or warning", "crashes", "seconds")
    table: list[tuple[str, ...]] = [heads]
    below: list[str] = []
    for peer, mine in rows.items():
        if isinstance(mine, str):
            below.append(f"{named[peer]}: not available: {mine}")
            continue
        fails, trains = ([row for row in mine if row["label"] == label] for label in ("fails", "trains"))
        seconds = sorted(row["seconds"] for row in mine if row["seconds"] is not None)
        cells = [share(rows, *severities) for rows in (fails, trains) for severities in (("error",), ("error", "warning"))]
        crashes = sum(row["crash"] is not None for row in mine)
        table.append((named[peer], *cells, str(crashes), f"{seconds[len(seconds) // 2]:.1f}" if seconds else "-"))
        below += kinds(named[peer], mine)
    widths = [max(len(row[i]) for row in table) for i in range(len(heads))]
    aligned = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    return "\n".join([*(aligned if len(table) > 1 else []), *below])


def kinds(name: str, rows: list[Row]) -> list[str]:
    """How often each kind of message came with each label, and each crash."""
    counts: dict[str, Counter[str]] = {}
    for row in rows:
        for message in row["messages"]:
            counts.setdefault(message.split(":", 1)[0], Counter())[row["label"]] += 1
    lines = [f"  {kind:40} {dict(sorted(found.items()))}" for kind, found in sorted(counts.items())]
    lines += [f"  crashed on {row['seed']} ({row['label']}): {row['crash']}" for row in rows if row["crash"] is not None]
    return [f"{name}:", *(lines or ["  silent"])]


def _seeds(text: str) -> range:
    first, colon, end = text.partition(":")
    if not (colon and first.isdecimal() and end.isdecimal() and int(first) < int(end)):
        raise argparse.ArgumentTypeError(f"{text!r} is not FIRST:END with FIRST below END")
    return range(int(first), int(end))


def _peers(text: str) -> list[str]:
    peers = list(dict.fromkeys(name.strip() for name in text.split(",")))
    unknown = [name for name in peers if name not in VERSIONS]
    if unknown:
        raise argparse.ArgumentTypeError(f"no peer {', '.join(map(repr, unknown))}; there are {', '.join(VERSIONS)}")
    return peers


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=_seeds, default=range(1000, 1060), help="FIRST:END")
    parser.add_argument("--peers", type=_peers, default=list(VERSIONS), help="their names, with commas between; all by default")
    parser.add_argument("--environments", type=Path, help="folder of environments and labels; in the user's cache by default")
    parser.add_argument("--steps", type=_positive, help="training steps that a peer watches")
    parser.add_argument("--json", type=Path, help="add one line per peer and workload to this file")
    return parser.parse_args(arguments)


def main() -> None:
    arguments = parse()
    folder = arguments.environments or environments_folder()
    folder.mkdir(parents=True, exist_ok=True)
    folder = folder.resolve()
    label = labels(arguments.seeds, folder)
    results: dict[str, list[Row] | str] = {}
    for peer in arguments.peers:
        try:
            python = environment(peer, folder)
        except NotAvailable as error:
            results[peer] = str(error)
            continue
        rows = []
        for row in applied(peer, python, arguments.seeds, arguments.steps):
            rows.append({"peer": peer, **row, "label": label[row["seed"]]})
            if arguments.json:
                with arguments.json.open("a", encoding="utf-8") as file:
                    file.write(json.dumps(rows[-1]) + "\n")
        results[peer] = rows
    counts = Counter(label.values())
    print(", ".join(f"{counts[name]} {name}" for name in ("fails", "between", "trains")))
    print(summary({peer: f"{peer} {VERSIONS[peer]}" for peer in results}, results))


if __name__ == "__main__":
    main()
