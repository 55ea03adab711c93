"""What the user says about a training script, before it is run."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class ScriptSpec:
    path: str
    arguments: tuple[str, ...] = ()  # its own, after `--`
    steps: int | None = None  # optimizer steps that it takes; None: as many as are looked at by default
    budget: float | None = None  # seconds for its own run
    sandbox: bool = False  # run in a temporary copy of its folder
    quiet: bool = False  # what it prints is dropped
    seed: int = 0
    edits: tuple[tuple[str, bytes], ...] = ()  # (path, content) of files that read otherwise in the copy, which is made for them

    @property
    def target(self) -> str:
        return self.path
