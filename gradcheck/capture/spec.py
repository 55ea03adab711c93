"""What the user says about a training script, before it is run."""

from dataclasses import dataclass
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

from gradcheck.capture.program import Kind


@dataclass(frozen=True)
class LiveCell:
    """A cell of a notebook that is running: its code, to be run among the names of the notebook."""

    code: CodeType
    module: ModuleType  # the notebook's `__main__`
    sites: Any  # Sites of what earlier cells have made


@dataclass(frozen=True)
class ScriptSpec:
    path: str  # of the file; of `-m` the name of the module, of `-c` the text
    arguments: tuple[str, ...] = ()  # its own, after `--`
    steps: int | None = None  # optimizer steps that it takes; None: as many as are looked at by default
    budget: float | None = None  # seconds for its run and for measuring what it trains
    sandbox: bool = False  # run in a mirror of its folder, which keeps what it writes
    quiet: bool = False  # what it prints is dropped
    offload: bool = False  # what its models were before training is set aside
    seed: int = 0
    edits: tuple[tuple[str, bytes], ...] = ()  # (path, content) of files that read differently in the copy, which is made for them
    kind: Kind = "script"
    replay: str = ""  # file with a batch, and the state of the model, on which it runs
    cell: LiveCell | None = None  # run in place of a program; `path` is what it is called

    @property
    def target(self) -> str:
        """How reports name it."""
        return {"module": f"-m {self.path}", "code": "-c ..."}.get(self.kind, self.path)

    @property
    def folder(self) -> Path:
        """What `sys.path` holds first, and what a sandbox copies: the folder of the file, else the working directory."""
        return Path(self.path).resolve().parent if self.is_file else Path.cwd()

    @property
    def is_file(self) -> bool:
        return self.kind in ("script", "notebook")
