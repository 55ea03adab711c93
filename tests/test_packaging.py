"""What is shipped: the package list, the rules served from the top level, the wheel, and one README command for people and CI."""

from __future__ import annotations

import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from gradcheck.cli.start import samples

ROOT = Path(__file__).resolve().parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def modules_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*.py")}


def copy_of_the_sources(into: Path) -> Path:
    """What a build reads, links kept as links, without the caches and builds of the checkout."""
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, into / name)
    for name in ("gradcheck", "rules", "sample_models"):
        shutil.copytree(ROOT / name, into / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    return into


def build(kind: str, source: Path, out: Path) -> Path:
    """Runs a hook of the build backend ("build_wheel", "build_sdist") in `source`; returns the archive."""
    out.mkdir(exist_ok=True)
    hook = f"import sys; from setuptools import build_meta; print(build_meta.{kind}(sys.argv[1]))"
    run = subprocess.run([sys.executable, "-c", hook, str(out)], cwd=source, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return out / run.stdout.strip().splitlines()[-1]


def files_in(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_of_the_sources(tmp_path_factory.mktemp("sources"))


@pytest.fixture(scope="module")
def wheel(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("build_wheel", sources, tmp_path_factory.mktemp("wheel"))


def test_rules_are_served_as_gradcheck_rules() -> None:
    rules = importlib.import_module("gradcheck.rules")
    assert rules.__file__ is not None
    folder = Path(rules.__file__).parent
    assert modules_of(folder) == modules_of(ROOT / "rules")
    assert (ROOT / "gradcheck" / "rules").resolve() == ROOT / "rules"


def test_every_package_is_listed() -> None:
    on_disk = {"gradcheck"}
    for folder, subfolders, _ in os.walk(ROOT / "gradcheck", followlinks=True):
        subfolders[:] = [name for name in subfolders if name != "__pycache__"]
        on_disk |= {".".join((Path(folder) / name).relative_to(ROOT).parts) for name in subfolders}
    assert set(PYPROJECT["tool"]["setuptools"]["packages"]) == on_disk


def test_the_version_is_said_once() -> None:
    import gradcheck

    assert gradcheck.__version__ == PYPROJECT["project"]["version"]


def test_constraints_satisfy_the_dependencies() -> None:
    from packaging.requirements import Requirement

    lines = (line.partition("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    pinned = dict(line.split("==") for line in lines if line)
    extras = PYPROJECT["project"]["optional-dependencies"]
    wanted = [Requirement(text) for text in [*PYPROJECT["project"]["dependencies"], *extras["test"]]]
    for requirement in wanted:
        assert requirement.name in pinned, f"{requirement.name} has no version in constraints.txt"
        assert requirement.specifier.contains(pinned[requirement.name]), requirement


def test_wheel_holds_the_package_and_the_rules_only(wheel: Path) -> None:
    names = files_in(wheel)
    assert {name.partition("/")[0] for name in names} == {"gradcheck"}
    assert "gradcheck/py.typed" in names
    assert {"gradcheck/report/html/style.css", "gradcheck/report/html/script.js"} <= names
    assert {name.removeprefix("gradcheck/rules/") for name in names if name.startswith("gradcheck/rules/")} == modules_of(ROOT / "rules")


def test_wheel_brings_the_samples_of_the_demo_and_stays_small(wheel: Path, tmp_path: Path) -> None:
    packed = {name for name in files_in(wheel) if name.startswith("gradcheck/samples/")}
    assert packed == {"gradcheck/samples/__init__.py", "gradcheck/samples/samples.json.bz2"}
    zipfile.ZipFile(wheel).extractall(tmp_path / "site")
    says = "import json; from gradcheck.cli.start import samples; print(json.dumps(samples()))"
    run = subprocess.run(
        [sys.executable, "-P", "-c", says],
        env={**os.environ, "PYTHONPATH": str(tmp_path / "site")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(run.stdout) == samples() and set(samples()) == {
        name for folder in ("faulty", "scripts/faulty") for name in modules_of(ROOT / "sample_models" / folder)
    }
    assert wheel.stat().st_size < 1_500_000


def test_wheel_says_of_its_rules_what_the_sources_say(wheel: Path, tmp_path: Path) -> None:
    """Their pages lie in one file, and their docstrings keep the first line; no line of the source moves."""
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-P", "-m", "gradcheck", "rules", "--all", "--output", "json"]
    said = [
        subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, capture_output=True, text=True, check=True).stdout
        for root in (site, ROOT)
    ]
    assert said[0] == said[1] and len(json.loads(said[0])) > 100
    for path in ROOT.glob("rules/*/*.py"):
        packed = (site / "gradcheck" / path.relative_to(ROOT)).read_text(encoding="utf-8")
        assert len(packed.splitlines()) == len(path.read_text(encoding="utf-8").splitlines())
        assert "## What it finds" not in packed


def test_wheel_from_the_source_distribution_is_the_same(wheel: Path, sources: Path, tmp_path: Path) -> None:
    with tarfile.open(build("build_sdist", sources, tmp_path / "sdist")) as archive:
        archive.extractall(tmp_path / "unpacked", filter="data")
    (unpacked,) = (tmp_path / "unpacked").iterdir()
    assert files_in(build("build_wheel", unpacked, tmp_path / "again")) == files_in(wheel)


def test_a_stale_build_folder_brings_no_rule_back(tmp_path: Path) -> None:
    """setuptools packs whatever an earlier build left in build/lib; only families that are listed are loaded."""
    source = copy_of_the_sources(tmp_path)
    stale = source / "build" / "lib" / "gradcheck" / "rules" / "deleted_family.py"
    stale.parent.mkdir(parents=True)
    stale.write_text("raise AssertionError('a deleted rule was loaded')\n")
    wheel = build("build_wheel", source, tmp_path / "out")
    assert "gradcheck/rules/deleted_family.py" in files_in(wheel), "the build dropped it: this test tests nothing"
    site = tmp_path / "site"
    zipfile.ZipFile(wheel).extractall(site)
    command = [sys.executable, "-P", "-m", "gradcheck", "rules"]
    listing = subprocess.run(command, env={**os.environ, "PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert listing.returncode == 0, listing.stderr


def test_ci_runs_the_commands_of_the_readme() -> None:
    readme = (ROOT / "README.md").read_text()
    commands = re.findall(r"^python -m venv .*$", readme, re.MULTILINE)
    scan, test = commands
    assert "-c constraints.txt . &&" in scan
    assert "gradcheck scan sample_models/faulty/" in scan
    assert test.endswith("-c constraints.txt -e '.[test]' && .venv/bin/python -m pytest -q -n 2 --dist worksteal")
    sample = scan.split()[-1]
    assert (ROOT / sample).is_file(), f"the README scans {sample}, which does not exist"
    script = (ROOT / ".ci" / "run").read_text()
    assert "README.md" in script, ".ci/run must take its commands from the README"
    found = subprocess.run(["bash", str(ROOT / ".ci" / "run"), "--list"], capture_output=True, text=True)
    assert found.stdout.splitlines() == commands, found.stderr
