"""A folder of images, its sub-folders the classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradcheck.errors import TargetError

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_LONGEST_SIDE = 224  # larger images are read smaller


def read_images(folder: Path, limit: int, seed: int) -> Any:
    """Images [N, C, H, W] in 0..1, and class labels [N] by sub-folder in alphabetical order when there are any.

    All have the size of the first one, its longer side at most 224; grey if the first is. Raises TargetError.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise TargetError(f"{folder}: images need Pillow", hint="pip install pillow") from error
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and any(_images_in(entry)))
    files = [(file, label) for label, name in enumerate(classes) for file in _images_in(folder / name)]
    files = files or [(file, -1) for file in _images_in(folder)]
    if not files:
        raise TargetError(
            f"{folder} has no images", hint=f"gradcheck looks for {', '.join(_SUFFIXES)}, in sub-folders named after the classes"
        )
    order = torch.randperm(len(files), generator=torch.Generator().manual_seed(seed), device="cpu").tolist()
    chosen = [files[i] for i in order[:limit]]
    size: tuple[int, int] | None = None
    mode, images = "RGB", []
    for file, _ in chosen:
        try:
            with Image.open(file) as image:
                if size is None:
                    scale = min(1.0, _LONGEST_SIDE / max(image.size))
                    size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
                    mode = "L" if image.mode in ("1", "L", "I", "I;16", "F") else "RGB"
                images.append(_pixels(image.convert(mode).resize(size)))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise TargetError(f"{file} cannot be read as an image: {error}", hint="remove it or replace it") from error
    x = torch.stack(images)
    return (x, torch.tensor([label for _, label in chosen], device="cpu")) if classes else x


def _images_in(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in _SUFFIXES)


def _pixels(image: Any) -> torch.Tensor:
    """[C, H, W] in 0..1."""
    array = np.asarray(image, dtype=np.float32) / 255
    return torch.from_numpy(np.ascontiguousarray(array[None] if array.ndim == 2 else array.transpose(2, 0, 1)))
