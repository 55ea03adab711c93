"""The gradient clipping of the user's training loop, which no object holds: a number that the file gives a customary name."""

from __future__ import annotations

import ast
import inspect
from types import ModuleType
from typing import Literal

from gradcheck.types.location import Location
from gradcheck.types.measurement import Assumption
from gradcheck.workload.source_sites import display_path
from gradcheck.workload.workload import Clipping

BY_NORM = ("clip_grad_norm", "max_grad_norm", "grad_clip", "gradient_clip_val", "clip_norm", "grad_clip_norm", "grad_norm_clip")
BY_VALUE = ("clip_grad_value", "clip_value", "grad_clip_value", "max_grad_value")
ALGORITHM = "gradient_clip_algorithm"  # Lightning's, beside its `gradient_clip_val`


def find_clipping(module: ModuleType, home: str, said: list[Assumption]) -> Clipping | None:
    """From a module-level number such as `max_grad_norm = 1.0`, in small letters or capitals; None when there is none."""
    known = {name.lower(): (name, value) for name, value in vars(module).items()}
    by_value = known.get(ALGORITHM, ("", "norm"))[1] == "value"
    for name in (*BY_NORM, *BY_VALUE):
        spelling, threshold = known.get(name, (name, None))
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or threshold <= 0:
            continue
        kind: Literal["norm", "value"] = "value" if by_value or name in BY_VALUE else "norm"
        said.append(Assumption("clipping", f"clipping: gradients by {kind} at {threshold:g}, `{spelling}` in {home}", given=True))
        return Clipping(kind, float(threshold), _assignment(module, spelling))
    return None


def _assignment(module: ModuleType, name: str) -> Location | None:
    """The last statement at the top of the module that gives the name its value."""
    try:
        file, source = inspect.getsourcefile(module), inspect.getsource(module)
        body = ast.parse(source).body
    except (TypeError, OSError, SyntaxError):
        return None
    found: Location | None = None
    for node in body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        if file and any(isinstance(t, ast.Name) and t.id == name for t in targets):
            end = node.end_col_offset if node.end_col_offset is not None else node.col_offset
            found = Location(display_path(file), node.lineno, node.col_offset + 1, node.end_lineno or node.lineno, end + 1, "")
    return found
