"""The build is what pyproject.toml says, but smaller: one file holds the samples of `gradcheck demo`, and deflate works at its best."""

import bz2
import json
import shutil
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from unittest import mock

import zopfli.zlib
from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """Packs the samples that were copied into the build."""

    def run(self) -> None:
        super().run()
        if self.editable_mode:
            return
        folder = Path(self.build_lib, "gradcheck", "samples")
        kinds = [path for path in sorted(folder.iterdir()) if path.is_dir() and any(path.glob("*.py"))]
        texts = {file.name: file.read_text(encoding="utf-8") for kind in kinds for file in sorted(kind.glob("*.py"))}
        (folder / "samples.json.bz2").write_bytes(bz2.compress(json.dumps(texts).encode()))
        for kind in kinds:
            shutil.rmtree(kind)


class Packed:
    """The compressor that `zipfile` asks for, of data that zopfli packed before: smaller by a fortieth than zlib's best."""

    def __init__(self, packed: Mapping[bytes, bytes]) -> None:
        self.packed, self.data = packed, b""

    def compress(self, data: bytes) -> bytes:
        self.data += data
        return b""

    def flush(self) -> bytes:
        return self.packed[self.data][2:-4]  # without the header and the checksum of zlib


class BdistWheel(bdist_wheel):
    """Packs the wheel again, as small as deflate can, which takes several seconds."""

    def run(self) -> None:
        super().run()
        path = self.distribution.dist_files[-1][2]
        with zipfile.ZipFile(path) as wheel:
            members = [(info, wheel.read(info)) for info in wheel.infolist()]
        with ThreadPoolExecutor() as pool:
            packed = {data: pool.submit(zopfli.zlib.compress, data, numiterations=30) for _, data in members}
        done = {data: task.result() for data, task in packed.items()}
        with mock.patch("zipfile._get_compressor", lambda *_: Packed(done)), zipfile.ZipFile(path, "w") as wheel:
            for info, data in members:
                wheel.writestr(info, data)


setup(cmdclass={"build_py": BuildPy, "bdist_wheel": BdistWheel})
