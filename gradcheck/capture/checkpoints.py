"""What a script saves while it is scanned: kept in memory, so that no file of the user's is overwritten."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gradcheck.instrument.patches import Patches


def keep_checkpoints(patches: Patches, home: Path | None) -> None:
    """Makes `torch.save` keep its data in memory, where `torch.load` finds it; in a sandbox it writes."""
    kept: dict[str, bytes] = {}

    def place(file: Any) -> str | None:
        if not isinstance(file, (str, os.PathLike)):
            return None
        path = os.path.realpath(os.fspath(file))
        return None if home is not None and Path(path).is_relative_to(home.resolve()) else path

    def save(original: Callable[..., Any]) -> Callable[..., Any]:
        def saved(value: Any, f: Any, *args: Any, **kwargs: Any) -> Any:
            path = place(f)
            if path is None:
                return original(value, f, *args, **kwargs)
            if not kept:
                print("gradcheck: checkpoints are kept in memory and not written (--sandbox writes them to a copy)", file=sys.stderr)
            buffer = io.BytesIO()
            result = original(value, buffer, *args, **kwargs)
            kept[path] = buffer.getvalue()
            return result

        return saved

    def load(original: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(f: Any, *args: Any, **kwargs: Any) -> Any:
            found = kept.get(place(f) or "")
            return original(io.BytesIO(found) if found is not None else f, *args, **kwargs)

        return loaded

    patches.wrap(torch, "save", save)
    patches.wrap(torch, "load", load)
