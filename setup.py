"""The build is what pyproject.toml says, but smaller: the samples of `gradcheck demo` lie in one file, the pages of the rules in another,
and deflate works at its best."""

import ast
import bz2
import json
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from unittest import mock

import zopfli.zlib
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Packs the samples and the pages of the rules that were copied into the build."""

    def run(self) -> None:
        self.force = True  # whatever an earlier build left here has lost its pages
        super().run()
        if self.editable_mode:
            return
        package = Path(self.build_lib, "gradcheck")
        folder = package / "samples"
        kinds = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.py"))]
        pack(folder / "samples.json.bz2", {file.name: file.read_text("utf-8") for kind in kinds for file in sorted(kind.glob("*.py"))})
        for kind in kinds:
            shutil.rmtree(kind)
        pages = [take_pages(path) for path in sorted(package.glob("rules/*/*.py"))]
        pack(package / "rule_pages.json.bz2", {name: page for found in pages for name, page in found.items()})


def pack(path: Path, texts: Mapping[str, str]) -> None:
    path.write_bytes(bz2.compress(json.dumps(texts).encode()))


def take_pages(path: Path) -> dict[str, str]:
    """Function -> page of the rules in a file, of whose docstrings the first line stays. All lines keep their numbers."""
    source, pages = path.read_text("utf-8"), {}
    lines = source.split("\n")
    for node in ast.parse(source).body:
        page = ast.get_docstring(node) if isinstance(node, ast.FunctionDef) else None
        if page and "\n## " in page:
            pages[node.name], first, last = page, node.body[0].lineno, node.body[0].end_lineno
            lines[first - 1 : last] = [lines[first - 1] + '"""', *[""] * (last - first)]
    path.write_text("\n".join(lines), "utf-8")
    return pages


class Zopfli:
    """The compressor that `zipfile` asks for: smaller by a fortieth than zlib's best."""

    def __init__(self, *_: object) -> None:
        self.data = b""

    def compress(self, data: bytes) -> bytes:
        self.data += data
        return b""

    def flush(self) -> bytes:
        """Without the header and the checksum of zlib. Splitting into blocks takes eight times as long, for less than 3 kB of the wheel."""
        return zopfli.zlib.compress(self.data, numiterations=5, blocksplitting=False)[2:-4]


class BdistWheel(bdist_wheel):
    """Packs the wheel again, as small as deflate can."""

    def run(self) -> None:
        super().run()
        path = self.distribution.dist_files[-1][2]
        with zipfile.ZipFile(path) as wheel:
            members = [(info, wheel.read(info)) for info in wheel.infolist()]
        with mock.patch("zipfile._get_compressor", Zopfli), zipfile.ZipFile(path, "w") as wheel:
            for info, data in members:
                wheel.writestr(info, data)


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
