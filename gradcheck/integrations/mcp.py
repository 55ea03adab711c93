"""`gradcheck mcp`: a server for agents over stdio (Model Context Protocol), with the tools scan, fix, explain, report and diff.

Scans and fixes run in their own processes, so that the server imports no torch and is isolated from the user's code. Every run is saved in
`.gradcheck/`; the previous one is kept beside it for comparison.
"""

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
from anyio.streams.text import TextReceiveStream
from mcp.server.mcpserver import Context, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp_types import ToolAnnotations

from gradcheck.config.settings import load
from gradcheck.errors import GradcheckError
from gradcheck.judge.diff import diff as compared
from gradcheck.judge.judge import judge_again
from gradcheck.judge.registry import builtin_rules, find_rule, load_rules
from gradcheck.judge.select import unknown
from gradcheck.report import diff as shown
from gradcheck.report.brief import ROOM, NextStep, brief
from gradcheck.report.outcomes import tail
from gradcheck.report.progress_bar import LINE, LINES
from gradcheck.report.rule_page import rule_page
from gradcheck.report.saved_runs import kept_before, run_of
from gradcheck.saved_run import load_all
from gradcheck.version import __version__

INSTRUCTIONS = (
    "gradcheck measures the training of a PyTorch model on copies and says at which source line what keeps it from learning. "
    "Start with scan on the training script or model file; explain a rule before you act on it; fix proposes edits that are proved by "
    "paired trainings; scan again after an edit and compare the runs with diff."
)
MOST_PATCH = 6_000  # characters of a patch in an answer; the whole one is in a file
MOST_ERROR = 2_000  # of what a failed process said last
TOOLS = NextStep(
    lambda name: f"explain(rule={json.dumps(name)})",
    lambda target: f"fix(target={json.dumps(target)})",
    lambda target: f"`gradcheck watch -- python {target}`",
)
READING = ToolAnnotations(read_only_hint=True, open_world_hint=False)
RUNNING = ToolAnnotations(read_only_hint=False, destructive_hint=False, open_world_hint=True)

Answer = Callable[..., Awaitable[str]]


def serve(*, allow_write: bool = False) -> None:
    """Answers on stdin and stdout until the client closes them. `allow_write`: the tool `fix` may write into the source."""
    server(allow_write).run("stdio")


def server(allow_write: bool) -> MCPServer:
    """The server with its tools; the working directory is the project."""
    made = MCPServer("gradcheck", version=__version__, instructions=INSTRUCTIONS)
    add = functools.partial(made.add_tool, structured_output=False)  # structured answers would repeat the text
    add(_told(scan), name="scan", annotations=RUNNING)
    add(_told(fix_and_write if allow_write else fix), name="fix", annotations=RUNNING)
    for answer in (explain, report, diff):
        add(_told(answer), annotations=READING)
    return made


def _told(answer: Answer) -> Answer:
    """Turns errors of gradcheck into the tool's answer, with the next step."""

    @functools.wraps(answer)
    async def told(*arguments: Any, **named: Any) -> str:
        try:
            return await answer(*arguments, **named)
        except GradcheckError as error:
            raise ToolError(f"{error.message}\nhelp: {error.hint}" if error.hint else error.message) from error
        except (OSError, ValueError) as error:  # of the system: a name that is too long, or is none
            raise ToolError(f"{error}\nhelp: name a file such as train.py, or an import path such as package.module:name") from error

    return told


async def scan(
    target: str,
    ctx: Context,
    arguments: list[str] | None = None,
    fast: bool = False,
    budget: float | None = None,
    seeds: int | None = None,
    select: list[str] | None = None,
    ignore: list[str] | None = None,
) -> str:
    """Measure a training and say what will keep it from learning, where, and what to do next. Changes no file of the project.

    target: a training script (train.py), notebook, model file (model.py, model.py:name) or import path (package.module:name).
    arguments: what the script gets on its command line. fast: the first steps only, without training experiments.
    budget: seconds for all of it. seeds: how many seeds (default 1). select, ignore: names or codes of rules.
    """
    words = [*_option("--budget", budget), *_option("--seeds", seeds), *(["--fast"] if fast else [])]
    words += [word for flag, names in (("--select", select), ("--ignore", ignore)) for name in names or () for word in (flag, name)]
    run = run_of(target)
    before = kept_before(run)
    await _gradcheck(ctx, ["scan", *words, "--output", f"json:{run}", "--output", "brief"], target, arguments, run)
    older = f"; the run before: {before}" if before is not None else ""
    note = f"run saved to {run}{older}\n"
    return brief(load_all(run), TOOLS, ROOM - len(note)) + note


async def fix(target: str, ctx: Context, arguments: list[str] | None = None, unsafe: bool = False, budget: float | None = None) -> str:
    """Try remedies on copies, prove them by paired trainings, and return the edits as a patch. Writes nothing into the source.

    target, arguments: as for scan. unsafe: also what changes the architecture or the checkpoint keys.
    budget: seconds for treating and proving (by default three to five minutes).
    """
    return await _fixed(target, ctx, arguments, unsafe, budget, write=False)


async def fix_and_write(
    target: str, ctx: Context, arguments: list[str] | None = None, unsafe: bool = False, budget: float | None = None, write: bool = False
) -> str:
    """Try remedies on copies, prove them by paired trainings, and return the edits as a patch; write=true writes them.

    target, arguments: as for scan. unsafe: also what changes the architecture or the checkpoint keys.
    budget: seconds for treating and proving (by default three to five minutes). write: write the edits into the source; what is
    written is scanned again, and put back if it is not cured.
    """
    return await _fixed(target, ctx, arguments, unsafe, budget, write=write)


async def _fixed(target: str, ctx: Context, arguments: list[str] | None, unsafe: bool, budget: float | None, *, write: bool) -> str:
    run = run_of(f"{target}.fix")
    run.unlink(missing_ok=True)
    words = [*_option("--budget", budget), *(["--unsafe-fixes"] if unsafe else []), "--output", f"json:{run}"]
    words += ["--write", "--output", "brief"] if write else ["--diff"]
    patch = await _gradcheck(ctx, ["fix", *words], target, arguments, run)
    lines = [tail(report, written=write) for report in load_all(run)]
    if write or not patch:
        return "\n".join([*lines, f"what was tried: report(run={json.dumps(str(run))})"])
    file = run.with_suffix(".patch")
    file.write_text(patch, encoding="utf-8")
    cut = patch[:MOST_PATCH] + ("" if len(patch) <= MOST_PATCH else "\n... the rest is in the file\n")
    return "\n".join([*lines, f"next: apply it with `git apply {file}`, then scan again and compare with diff", "", cut])


async def explain(rule: str) -> str:
    """The page of a rule, by name or code: what it finds, how it is measured, its limits, when to ignore it, what to use instead."""
    every = builtin_rules()
    found = find_rule(rule, every)
    if found is None:
        every = load_rules(load().rule_paths)
        found = find_rule(rule, every)
    if found is None:
        raise unknown(rule, every)
    return rule_page(found)


async def report(run: str, select: list[str] | None = None, ignore: list[str] | None = None) -> str:
    """A saved run, judged again: with other rules, or after the settings of the project have changed. Nothing is run.

    run: a file that scan has named. select, ignore: names or codes of rules.
    """
    settings = load().with_flags(select=select, ignore=ignore)
    return brief([judge_again(saved, settings) for saved in load_all(Path(run))], TOOLS)


async def diff(base: str, head: str) -> str:
    """What became better and worse, and what is new or fixed, between two saved runs: files that scan has named."""
    tolerance = 0.1
    return shown.text(compared(load_all(Path(base)), load_all(Path(head)), Path.cwd(), tolerance), tolerance)


def _option(flag: str, value: object) -> list[str]:
    return [] if value is None else [flag, str(value)]


async def _gradcheck(ctx: Context, words: list[str], target: str, arguments: list[str] | None, run: Path) -> str:
    """Runs `gradcheck WORDS TARGET -- ARGUMENTS`, passes its progress on, and returns its stdout. Raises ToolError when no run is saved."""
    if target.startswith("-"):
        raise ToolError(f"{target!r} is not a target\nhelp: name a file such as train.py, or an import path such as package.module:name")
    # -P: a file of the project named as a module of torch's must not take its place
    command = [sys.executable, "-P", "-m", "gradcheck", *words, target, *(["--", *arguments] if arguments else [])]
    said: list[str] = []
    out: list[str] = []
    environment = os.environ | {LINES: "1", "NO_COLOR": "1"}
    async with await anyio.open_process(command, stdin=subprocess.DEVNULL, env=environment, start_new_session=True) as process:
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(_collect, process.stdout, out)
                tasks.start_soon(_listen, process.stderr, ctx, said)
                await process.wait()
        finally:
            if process.returncode is None and hasattr(os, "killpg"):  # the client has cancelled: what the script has started goes, too
                os.killpg(process.pid, signal.SIGKILL)
    if not run.exists():
        raise ToolError(_failure(said) or f"gradcheck {words[0]} ended with exit code {process.returncode}")
    return "".join(out)


async def _collect(stream: Any, texts: list[str]) -> None:
    async for text in TextReceiveStream(stream, errors="replace"):
        texts.append(text)


async def _listen(stream: Any, ctx: Context, said: list[str]) -> None:
    """Progress to the client; other lines are kept."""
    rest = ""
    async for text in TextReceiveStream(stream, errors="replace"):
        *lines, rest = (rest + text).split("\n")
        for line in lines:
            if not line.startswith(LINE):
                said.append(line)
                continue
            fraction, _, phase = line.removeprefix(LINE).partition(" ")
            await ctx.report_progress(float(fraction), 1.0, phase)
    said.append(rest)


def _failure(said: list[str]) -> str:
    """From the last `error:` on."""
    start = max((i for i, line in enumerate(said) if line.startswith("error:")), default=0)
    return "\n".join(said[start:]).strip()[-MOST_ERROR:]
