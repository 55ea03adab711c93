"""A watched run on the screen: a board on a terminal, plain lines elsewhere."""

import math
from collections.abc import Sequence

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from gradcheck.analysis.wording import number, percent
from gradcheck.report.console import STYLES
from gradcheck.report.formatting import BLOCKS, clean, evenly, spark
from gradcheck.types.gauges import Frame, LiveFinding

WIDTH = 24
SHOWN_FINDINGS = 5


def plain_line(frame: Frame) -> str:
    """`step 150: loss 0.452, gradient 1.2, update 0.8 %, rate 0.001, 12.3 steps/s, overhead 1.4 %`."""
    parts = [f"loss {number(frame.loss)}"]
    parts += [f"gradient {number(frame.norm)}"] if frame.norm is not None else []
    parts += [f"update {percent(frame.update)}"] if frame.update is not None else []
    parts.append(f"rate {number(frame.rate)}")
    parts += [f"{number(frame.speed)} steps/s"] if frame.speed else []
    parts += [f"overhead {percent(frame.overhead)}"] if frame.overhead is not None else []
    return f"step {frame.step}: {', '.join(parts)}"


def finding_line(finding: LiveFinding) -> str:
    place = f"{finding.place}: " if finding.place else ""
    return clean(f"{place}{finding.severity}: {finding.name} ({finding.code}) {finding.message}")


def board(frame: Frame | None, title: str, width: int, partial: str = "") -> RenderableType:
    """`partial`: what the program has written of an incomplete line."""
    title = clean(title)
    above = [Text.from_ansi(partial, no_wrap=True, overflow="crop")] if partial.strip() else []
    if frame is None:
        return Group(*above, Text(f"gradcheck: {title}: waiting for the first steps", style="dim", no_wrap=True, overflow="ellipsis"))
    head = Text.assemble(
        ("gradcheck", "bold"), f" {title}  step {frame.step}  {number(frame.speed)} steps/s", no_wrap=True, overflow="ellipsis"
    )
    if frame.overhead is not None:
        head.append(f"  overhead {percent(frame.overhead)}", style="dim")
    spikes = [_row("spike: ", "yellow", spike, width) for spike in frame.spikes]
    return Group(*above, head, _numbers(frame), *_layers(frame), *spikes, *_findings(frame.findings, width))


def _numbers(frame: Frame) -> Table:
    table = Table.grid(padding=(0, 2))
    table.add_row("loss", number(frame.loss), line(frame.losses))
    if frame.norm is not None:
        table.add_row("gradient", number(frame.norm), spark(frame.norms))
    if frame.update is not None:
        table.add_row("update", percent(frame.update), Text(f"of a typical weight a step, at rate {number(frame.rate)}", style="dim"))
    return table


def _layers(frame: Frame) -> list[RenderableType]:
    if not frame.layers:
        return []
    table = Table.grid(padding=(0, 2))
    for layer in frame.layers:
        cells = (("gradient", layer.gradient, number), ("update", layer.update, percent), ("dead", layer.dead, percent))
        table.add_row(
            Text(clean(layer.name or "(model)"), style="cyan", no_wrap=True, overflow="ellipsis"),
            *(Text(f"{name} {show(value)}") if value is not None else Text("") for name, value, show in cells),
        )
    return [table]


def _row(label: str, style: str, text: str, width: int) -> Text:
    """In one line of the terminal."""
    row = Text.assemble((label, style), clean(text), no_wrap=True, overflow="ellipsis")
    row.truncate(max(20, width - 1), overflow="ellipsis")
    return row


def _findings(findings: Sequence[LiveFinding], width: int) -> list[Text]:
    shown = findings[:SHOWN_FINDINGS]
    rows = [_row(f"{f.severity}: ", STYLES[f.severity], f"{f.name} ({f.code}) {f.message}", width) for f in shown]
    more = len(findings) - SHOWN_FINDINGS
    return [*rows, Text(f"{more} more", style="dim")] if more > 0 else rows


def line(values: Sequence[float]) -> str:
    """Blocks on a linear scale, from the least to the largest; "!" is not finite."""
    chosen = evenly(values, WIDTH)
    finite = [v for v in chosen if math.isfinite(v)]
    low, height = min(finite, default=0.0), (max(finite, default=0.0) - min(finite, default=0.0)) or 1.0
    return "".join(BLOCKS[round((v - low) / height * (len(BLOCKS) - 1))] if math.isfinite(v) else "!" for v in chosen)
