"""The build is what pyproject.toml says, but for the samples of `gradcheck demo`: one file holds them, which makes the wheel smaller."""

import json
import shutil
from pathlib import Path

from setuptools import setup
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
        (folder / "samples.json").write_text(json.dumps(texts), encoding="utf-8")
        for kind in kinds:
            shutil.rmtree(kind)


setup(cmdclass={"build_py": BuildPy})
