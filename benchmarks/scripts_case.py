"""One script of benchmarks/scripts/: its header, its two variants, and how it is run.

The header is the block of comments at the top of the file. It is taken off before anything runs, so that nothing but an ordinary script is
scanned:

    # A convolutional net on scikit-learn's digits.
    # needs: lightning                    libraries besides torch, numpy and scikit-learn
    # run: {script} -- --epochs 3         what stands behind `gradcheck scan`; left out: the script alone
    # healthy: accuracy > 0.95            what the script prints last, and its bound: the faulty variant must miss it
    # fault: softmax before the cross-entropy
    # codes: LOSS001                      any of these names the fault,
    # at: F.softmax(                      at a line of the faulty variant that holds this (`A | B`: either)
    # -         return self.head(x)
    # +         return F.softmax(self.head(x), dim=1)

`-` lines must occur once in the script; the `+` lines below them take their place. `@@` stands between two deletions.
A script with `# %%` cells whose `run:` names {notebook} is written as a notebook.
"""

from __future__ import annotations

import json
import math
import operator
import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "scripts"
COMPARISONS = {"<": operator.lt, ">": operator.gt}


@dataclass(frozen=True)
class Bound:
    """What a script prints last about its training, and when that is good."""

    metric: str
    comparison: str
    limit: float

    def value(self, output: str) -> float | None:
        """The last value of the metric in a script's output: `accuracy 0.97`, `accuracy: 0.97` or `accuracy=0.97`."""
        found = re.findall(rf"\b{re.escape(self.metric)}[\s:=]+(-?(?:[\d.]+(?:e[+-]?\d+)?|nan|inf))", output)
        return float(found[-1]) if found else None

    def met(self, value: float | None) -> bool:
        return value is not None and math.isfinite(value) and COMPARISONS[self.comparison](value, self.limit)

    def __str__(self) -> str:
        return f"{self.metric} {self.comparison} {self.limit:g}"


@dataclass(frozen=True)
class Case:
    """A script and its fault."""

    name: str
    title: str
    needs: tuple[str, ...]
    run: str
    bound: Bound
    fault: str
    codes: tuple[str, ...]
    healthy: str
    faulty: str
    lines: tuple[int, ...]  # of the faulty variant: where the fault must be named

    @property
    def file(self) -> str:
        return f"{self.name}.ipynb" if "{notebook}" in self.run else f"{self.name}.py"

    def source(self, variant: str) -> str:
        return self.faulty if variant == "faulty" else self.healthy

    def write(self, variant: str, folder: Path) -> Path:
        """The file to run in `folder`, as a script or a notebook."""
        path = folder / f"{self.name}.py"
        path.write_text(self.source(variant))
        if "{notebook}" in self.run:
            path.with_suffix(".ipynb").write_text(json.dumps(notebook(self.source(variant))))
        return path

    def line(self, variant: str, location: dict[str, Any], end: bool = False) -> int:
        """The line of the script's text that a finding's location means: in a notebook it counts from the top of a cell."""
        line: int = (end and location["end_line"]) or location["line"]
        if not location.get("cell"):
            return line
        tops = [i for i, text in enumerate(self.source(variant).splitlines(), 1) if text.startswith("# %%")]
        return tops[location["cell"] - 1] + line

    def scan_arguments(self) -> list[str]:
        """What stands behind `gradcheck scan`."""
        return self._filled(self.run)

    def plain_command(self, python: str) -> list[str]:
        """The script run by itself."""
        before, _, after = self.run.partition("-- ")
        if before.strip():
            return [python, f"{self.name}.py", *self._filled(after)]
        command = self._filled(after)
        return [python, *command[1:]] if command[0] == "python" else command

    def _filled(self, words: str) -> list[str]:
        names = {"script": f"{self.name}.py", "notebook": f"{self.name}.ipynb", "module": self.name}
        return shlex.split(words.format(**names))


def cases() -> list[Case]:
    return [read(path) for path in sorted(FOLDER.glob("*.py"))]


def read(path: Path) -> Case:
    """Raises ValueError where the header does not fit the script."""
    text = path.read_text()
    header = re.match(r"(?:#(?! %%).*\n)+", text)
    if header is None:
        raise ValueError(f"{path.name} has no header")
    healthy = text[header.end() :].lstrip("\n")
    comments = [line.removeprefix("#").removeprefix(" ") for line in header[0].splitlines()]
    fields: dict[str, list[str]] = {}
    for line in comments:
        if match := re.match(r"(needs|run|healthy|fault|codes|at): (.*)", line):
            fields.setdefault(match[1], []).append(match[2].strip())
    faulty = apply(_changes(comments), healthy, path.name)
    metric, comparison, limit = fields["healthy"][0].rsplit(maxsplit=2)
    return Case(
        path.stem,
        comments[0],
        tuple(fields.get("needs", [""])[0].split()),
        fields.get("run", ["{script}"])[0],
        Bound(metric, comparison, float(limit)),
        fields["fault"][0],
        tuple(fields["codes"][0].split()),
        healthy,
        faulty,
        _lines([place for at in fields["at"] for place in at.split(" | ")], faulty, path.name),
    )


def _changes(comments: list[str]) -> list[tuple[list[str], list[str]]]:
    """Pairs of the lines that go and the lines that come."""
    changes: list[tuple[list[str], list[str]]] = []
    before = ""
    for line in comments:
        sign = line[:1]
        if sign == "-":
            if before != "-":
                changes.append(([], []))
            changes[-1][0].append(line[2:])
        elif sign == "+":
            changes[-1][1].append(line[2:])
        before = sign
    return changes


def apply(changes: list[tuple[list[str], list[str]]], text: str, name: str) -> str:
    for old, new in changes:
        gone, come = "".join(line + "\n" for line in old), "".join(line + "\n" for line in new)
        where = [m.start() for m in re.finditer(re.escape(gone), text) if m.start() == 0 or text[m.start() - 1] == "\n"]
        if len(where) != 1:
            raise ValueError(f"{name}: {old} occurs {len(where)} times, not once")
        text = text[: where[0]] + come + text[where[0] + len(gone) :]
    if not changes:
        raise ValueError(f"{name} has no fault")
    return text


def _lines(places: list[str], text: str, name: str) -> tuple[int, ...]:
    lines = tuple(i for i, line in enumerate(text.splitlines(), 1) if any(place in line for place in places))
    if not lines:
        raise ValueError(f"{name}: no line of the faulty variant holds {places}")
    return lines


def notebook(source: str) -> dict[str, object]:
    """A notebook of the cells that `# %%` divides."""
    cells = [part.strip("\n") for part in re.split(r"^# %%.*\n", source, flags=re.MULTILINE) if part.strip()]
    form = {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": []}
    code = [{**form, "source": cell.splitlines(keepends=True)} for cell in cells]
    kernel = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    return {"cells": code, "metadata": kernel, "nbformat": 4, "nbformat_minor": 5}
