"""gradcheck: what keeps a PyTorch model from training, found by measuring it. (Not torch.autograd.gradcheck.)

    import gradcheck
    report = gradcheck.scan(model, batches, loss=loss, optimizer=optimizer)

Names are loaded when they are first used, so that `import gradcheck` stays light: it imports no torch.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from gradcheck.errors import ConfigError, GradcheckError, SavedRunError, TargetError
    from gradcheck.nouns.measurement import Measurement
    from gradcheck.nouns.report import Report
    from gradcheck.nouns.verdict import Evidence, Finding, Remedy
    from gradcheck.scan import scan

__version__ = "0.1.0"

__all__ = [
    "ConfigError",
    "Evidence",
    "Finding",
    "GradcheckError",
    "Measurement",
    "Remedy",
    "Report",
    "SavedRunError",
    "TargetError",
    "__version__",
    "scan",
]

_HOMES = {
    "ConfigError": "gradcheck.errors",
    "GradcheckError": "gradcheck.errors",
    "SavedRunError": "gradcheck.errors",
    "TargetError": "gradcheck.errors",
    "Measurement": "gradcheck.nouns.measurement",
    "Report": "gradcheck.nouns.report",
    "Evidence": "gradcheck.nouns.verdict",
    "Finding": "gradcheck.nouns.verdict",
    "Remedy": "gradcheck.nouns.verdict",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradcheck' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(ModuleType):
    """`gradcheck.scan` is the function, also after the module of the same name was imported, which would replace it."""

    @property
    def scan(self) -> Any:
        return importlib.import_module("gradcheck.scan").scan

    @scan.setter
    def scan(self, module: ModuleType) -> None:
        """What the import system does when it has loaded gradcheck/scan.py: nothing to do."""


sys.modules[__name__].__class__ = _Package
