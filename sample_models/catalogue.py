"""What each faulty sample expects, read from its docstring; `python sample_models/catalogue.py` writes the table of the README.

A faulty sample's docstring is a title and three fields: `Faulty:`, `Expected:` (findings, the headline first,
as `name (CODE) severity` with semicolons between them) and `Cure:`.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
README = HERE / "README.md"
START, END = "<!-- table: python sample_models/catalogue.py -->", "<!-- end of table -->"

FIELDS = re.compile(r"^(Faulty|Expected|Cure): (.+?)(?=^\w+: |\Z)", re.MULTILINE | re.DOTALL)
EXPECTED = re.compile(r"(?P<name>[a-z0-9-]+) \((?P<code>[A-Z]+\d{3})\) (?P<severity>error|warning|info)")


@dataclass(frozen=True)
class Expected:
    name: str
    code: str
    severity: str


@dataclass(frozen=True)
class Sample:
    """A faulty file and what a scan has to say about it."""

    path: Path
    title: str
    illness: str
    expected: tuple[Expected, ...]  # the headline first, then what follows from it
    cure: str

    @property
    def twin(self) -> Path:
        return HERE / "healthy" / self.path.name


def read(path: Path) -> Sample:
    """The sample of one faulty file. Raises ValueError when its docstring lacks a field or a finding is malformed."""
    docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    fields = {name: " ".join(text.split()) for name, text in FIELDS.findall(docstring)}
    missing = {"Faulty", "Expected", "Cure"} - fields.keys()
    if missing:
        raise ValueError(f"{path.name}: the docstring has no {', '.join(sorted(missing))}")
    expected = []
    for text in fields["Expected"].split("; "):
        match = EXPECTED.fullmatch(text)
        if match is None:
            raise ValueError(f"{path.name}: {text!r} is not 'name (CODE) severity'")
        expected.append(Expected(**match.groupdict()))
    return Sample(path, docstring.partition("\n")[0], fields["Faulty"], tuple(expected), fields["Cure"])


def faulty_samples() -> list[Sample]:
    return [read(path) for path in sorted((HERE / "faulty").glob("*.py"))]


def healthy_classics() -> list[Path]:
    return [path for path in sorted(HERE.glob("*.py")) if path != Path(__file__).resolve()]


def table() -> str:
    lines = ["| faulty sample | what is wrong | expected | cure |", "|---|---|---|---|"]
    for sample in faulty_samples():
        expected = "<br>".join(f"{e.severity}: {e.name} ({e.code})" for e in sample.expected)
        link = f"[{sample.path.stem}](faulty/{sample.path.name})"
        lines.append(f"| {link} | {sample.title} | {expected} | {sample.cure.replace('|', '&#124;')} |")
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README's text with the present table between its two marks. Raises ValueError when a mark is missing."""
    before, start, rest = readme.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise ValueError(f"{README.name} lacks {START!r} or {END!r}")
    return f"{before}{START}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
