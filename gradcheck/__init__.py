"""gradcheck: what keeps a PyTorch model from training, found by measuring it. (Not torch.autograd.gradcheck.)

    import gradcheck
    report = gradcheck.scan(model, batches, loss=loss, optimizer=optimizer)

Names are loaded when they are first used, so that `import gradcheck` stays light: it imports no torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

from gradcheck.version import __version__

if TYPE_CHECKING:
    from gradcheck.api import fix, scan, trial, watch
    from gradcheck.errors import ConfigError, GradcheckError, SavedRunError, TargetError, TrainingStopped
    from gradcheck.live.watch import Board
    from gradcheck.repair.fixed import Fixed
    from gradcheck.types.finding import Evidence, Finding, Remedy
    from gradcheck.types.measurement import Measurement
    from gradcheck.types.report import Report
    from gradcheck.types.trial import TrialResult

__all__ = [
    "Board",
    "ConfigError",
    "Evidence",
    "Finding",
    "Fixed",
    "GradcheckError",
    "Measurement",
    "Remedy",
    "Report",
    "SavedRunError",
    "TargetError",
    "TrainingStopped",
    "TrialResult",
    "__version__",
    "fix",
    "scan",
    "trial",
    "watch",
]

_HOMES = {
    "ConfigError": "gradcheck.errors",
    "GradcheckError": "gradcheck.errors",
    "SavedRunError": "gradcheck.errors",
    "TargetError": "gradcheck.errors",
    "TrainingStopped": "gradcheck.errors",
    "Board": "gradcheck.live.watch",
    "Fixed": "gradcheck.repair.fixed",
    "fix": "gradcheck.api",
    "load_ipython_extension": "gradcheck.integrations.notebook",
    "scan": "gradcheck.api",
    "trial": "gradcheck.api",
    "watch": "gradcheck.api",
    "Measurement": "gradcheck.types.measurement",
    "Report": "gradcheck.types.report",
    "TrialResult": "gradcheck.types.trial",
    "Evidence": "gradcheck.types.finding",
    "Finding": "gradcheck.types.finding",
    "Remedy": "gradcheck.types.finding",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'gradcheck' has no attribute {name!r}")
    value = globals()[name] = getattr(importlib.import_module(_HOMES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
