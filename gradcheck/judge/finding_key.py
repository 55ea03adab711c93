"""Identifies findings from run to run, by keys without line numbers: edits elsewhere in a file do not change them."""

import hashlib
import os
import re
from collections.abc import Iterable
from pathlib import Path

from gradcheck.types.finding import Evidence, Finding


def key(finding: Finding, target: str, root: Path) -> str:
    """`name:path:scope:layer-pattern`; the path is seen from the folder `root`. Without a place, the target stands for it."""
    place = finding.location
    path = seen_from(place.path, root) if place else target_name(target, root)
    # Comprehensions have a scope of their own up to Python 3.11 only.
    scope = re.sub(r"(\.<locals>)?\.?<\w+comp>", "", place.scope) if place else ""
    return f"{finding.name}:{path}:{scope}:{layer_pattern(finding.layers)}"


def layer_pattern(layers: Iterable[str]) -> str:
    """Layer names with their numbers as stars, each once, sorted: `layers.*.linear1,stem`. One layer more changes nothing."""
    return ",".join(sorted({re.sub(r"(?<![^.])\d+(?![^.])", "*", name) for name in layers}))


def fingerprint(key: str, nth: int = 0) -> str:
    """32 hexadecimal digits of a key; `nth` tells findings with the same key apart."""
    return hashlib.sha256(f"{key}#{nth}".encode("utf-8", "backslashreplace")).hexdigest()[:32]


def seen_from(path: str, root: Path) -> str:
    """A path relative to a folder that holds it, with slashes; other paths are unchanged."""
    full = Path(os.path.abspath(path))
    folder = Path(os.path.abspath(root))
    return full.relative_to(folder).as_posix() if full.is_relative_to(folder) else Path(path).as_posix()


def target_name(target: str, root: Path) -> str:
    """A target, its file seen from the folder `root`."""
    path, colon, name = target.partition(":") if ".py:" in target else (target, "", "")
    return f"{seen_from(path, root)}{colon}{name}" if path.endswith(".py") else target


def telling(finding: Finding) -> Evidence | None:
    """The number that decides the finding: the first one that has a limit."""
    return next((e for e in finding.evidence if e.limit is not None), None)
