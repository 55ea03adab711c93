"""The rooms of the house: who may import whom, no circles, and folders that the code knows by their names."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from gradcheck.workload import source_sites

ROOT = Path(__file__).resolve().parents[1]

# Reports import their writers when they are asked to write themselves: pyproject.toml names the same four.
WRITERS = {
    ("gradcheck.types.report", "gradcheck.report.html"),
    ("gradcheck.types.report", "gradcheck.saved_run"),
    ("gradcheck.types.trial", "gradcheck.report.html"),
    ("gradcheck.types.trial", "gradcheck.saved_run"),
}


def modules() -> dict[str, Path]:
    """Dotted name -> file of every module of the package, the rules under their served name."""
    found = {}
    for folder, prefix in ((ROOT / "gradcheck", "gradcheck"), (ROOT / "rules", "gradcheck.rules")):
        for path in sorted(folder.rglob("*.py")):
            if (folder / "rules") not in path.parents:
                parts = path.relative_to(folder).with_suffix("").parts
                found[".".join([prefix, *(part for part in parts if part != "__init__")])] = path
    return found


def imported(tree: ast.Module, names: set[str], *, for_types: bool = False) -> Iterator[str]:
    """The modules among `names` that are imported anywhere in a module; `for_types`: for type checkers only, too."""
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.unparse(block.test)
        for statement in block.body
        for node in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in typing_only and not for_types:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in names)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in names or node.module in names:
                    yield full if full in names else str(node.module)


def circles(edges: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that reach each other: strongly connected components of more than one (Tarjan 1972)."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in sorted(edges.get(name, ())):
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in sorted(edges):
        if name not in index:
            visit(name)
    return found


def test_rooms_import_downwards() -> None:
    """The contracts in pyproject.toml, [tool.importlinter]."""
    program = Path(sys.executable).with_name("lint-imports")
    command = [str(program)] if program.exists() else [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    run = subprocess.run([*command, "--no-cache"], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions count too."""
    every = modules()
    edges = {name: set(imported(ast.parse(path.read_text()), set(every))) - {name} for name, path in every.items()}
    for above, below in WRITERS:
        edges[above].discard(below)
    assert circles(edges) == []


@pytest.mark.parametrize("room", ["capture", "instrument", "live"])
def test_what_listens_to_loops_has_no_circle_for_types_either(room: str) -> None:
    every = {name: path for name, path in modules().items() if name.startswith(f"gradcheck.{room}.")}
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in every.items()}
    assert circles({name: set(imported(tree, set(every), for_types=True)) - {name} for name, tree in trees.items()}) == []


def test_a_circle_is_seen() -> None:
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]


def test_no_class_name_has_two_meanings() -> None:
    places: dict[str, list[str]] = {}
    for name, path in modules().items():
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and node.name[0] != "_" and "samples" not in path.parts:
                places.setdefault(node.name, []).append(name)
    assert [name for name, found in places.items() if len(found) > 1] == ["GradcheckCallback"]  # one for each library that has such


def test_no_module_is_named_like_a_public_function() -> None:
    """`import gradcheck.scan` would put the module in place of the function."""
    import gradcheck

    assert not {name.removeprefix("gradcheck.") for name in modules()} & set(gradcheck.__all__)


def test_the_files_whose_frames_are_skipped_exist() -> None:
    """A renamed file would make gradcheck's own lines pass for the user's."""
    assert source_sites._TAPS
    for place in source_sites._TAPS:
        assert Path(place).exists(), place


@pytest.mark.parametrize(
    ("module", "origin"),
    [
        ("gradcheck.instrument.activation_recorder", "tap"),
        ("gradcheck.measure.session", "tap"),
        ("gradcheck.live.loop_monitor", "tap"),
        ("gradcheck.training.trainer", "tap"),
        ("gradcheck.workload.training_copy", "tap"),
        ("gradcheck.capture.recorder", "tap"),
        ("gradcheck.capture.tape", "tap"),
        ("gradcheck.instrument.loop_hooks", "tap"),
        ("gradcheck.capture.script", "gradcheck"),
        ("gradcheck.loading.importing", "gradcheck"),
        ("gradcheck.pipeline", "gradcheck"),
    ],
)
def test_whose_code_a_module_of_gradcheck_is(module: str, origin: str) -> None:
    assert source_sites.origin_of(str(modules()[module])) == origin
