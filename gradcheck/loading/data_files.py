"""Data files: .pt, .safetensors, .npz, .npy, .csv, and folders of images. Nothing is unpickled."""

import contextlib
import csv
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gradcheck.errors import TargetError
from gradcheck.types.location import Location
from gradcheck.workload.batches import BATCH_SIZE, Data, collect, with_tensors
from gradcheck.workload.source_sites import display_path
from gradcheck.workload.tensors import tensors_of

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


SUFFIXES = (".pt", ".pth", ".safetensors", ".npz", ".npy", ".csv", ".tsv")
_INPUT_KEYS = ("x", "X", "inputs", "input", "data", "images", "image", "features", "x_train", "X_train")
_TARGET_KEYS = ("y", "Y", "targets", "target", "labels", "label", "y_train", "Y_train")
_TARGET_COLUMNS = ("target", "label", "labels", "y", "class")
# Largest size in bytes of a file, and of an unpacked archive or tensor: a scan looks at some batches only. (heuristic)
MOST_BYTES = 8_000_000_000
# An archive larger than this that unpacks to more than so many times its size is a bomb. (heuristic)
FOLDED_BYTES, MOST_FOLDED = 1_000_000_000, 100
# A column with at most so many different whole numbers holds class labels.
_MOST_CLASSES = 50


def read_data(path: str, limit: int, seed: int) -> Data:
    """At most `limit` shuffled batches of 32 samples. Raises TargetError naming the place in the file."""
    file = Path(path)
    if not file.exists():
        raise TargetError(f"there is no data file {path}", hint=f"give {', '.join(SUFFIXES)}, a folder of images, or FILE.py:name")
    if file.is_dir():
        return Data(batched(read_images(file, limit * BATCH_SIZE, seed), limit, seed, path), path, loose_targets=True)
    if file.suffix.lower() not in SUFFIXES:
        raise TargetError(f"{path} is not a data file that gradcheck reads", hint=f"it reads {', '.join(SUFFIXES)} and folders of images")
    size = _size(file)
    if size == 0:
        raise TargetError(f"{path} is empty", hint="the file has no bytes")
    if size > MOST_BYTES or size > max(FOLDED_BYTES, MOST_FOLDED * file.stat().st_size):
        what = f"{path} unfolds to {size / 1e9:.3g} GB: more than gradcheck reads"
        raise TargetError(what, hint="save some batches of it: a few hundred samples are enough")
    found = _read(file)
    _refuse_unusual(found, path)
    content = _samples(found, path)
    if isinstance(content, list):  # batches as they are
        return Data(collect(content, limit, seed, path), path)
    return Data(batched(content, limit, seed, path), path, loose_targets=True)


def _size(file: Path) -> int:
    """Bytes of the file, or what an archive says that it holds."""
    size = file.stat().st_size
    if not zipfile.is_zipfile(file):
        return size
    with contextlib.suppress(zipfile.BadZipFile, OSError, ValueError, NotImplementedError), zipfile.ZipFile(file) as archive:
        size = max(size, sum(member.file_size for member in archive.infolist()))
    return size


NO_PICKLES = "gradcheck does not unpickle, since that runs code"


def _read(file: Path) -> Any:
    suffix = file.suffix.lower()
    if suffix in (".csv", ".tsv"):
        return read_table(file)
    readers = {".safetensors": _read_safetensors, ".npz": _read_numpy, ".npy": _read_numpy}
    return readers.get(suffix, _read_torch)(file)


def _read_torch(file: Path) -> Any:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:
        pickled = "weights_only" in str(error).lower() or "unsupported" in str(error).lower()
        what = "holds pickled objects other than tensors" if pickled else _unreadable(error)
        raise TargetError(f"{file} {what}", hint=f"{NO_PICKLES}; save tensors: torch.save({{'x': x, 'y': y}}, FILE)") from error


def _read_numpy(file: Path) -> Any:
    try:
        content = np.load(file, allow_pickle=False)
        return {name: content[name] for name in content.files} if isinstance(content, np.lib.npyio.NpzFile) else content
    except Exception as error:
        what = "holds pickled Python objects" if "pickle" in str(error).lower() else _unreadable(error)
        raise TargetError(f"{file} {what}", hint=f"{NO_PICKLES}; save numeric arrays: np.savez(FILE, x=x, y=y)") from error


def _read_safetensors(file: Path) -> Any:
    try:
        from safetensors.torch import load_file
    except ImportError as error:
        raise TargetError(f"{file} needs the safetensors package", hint="pip install safetensors") from error
    try:
        return load_file(file)
    except Exception as error:
        raise TargetError(f"{file} {_unreadable(error)}", hint="is it a safetensors file?") from error


def _unreadable(error: Exception) -> str:
    return f"cannot be read: {type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def _samples(content: Any, path: str) -> Any:
    """A tensor, (x, y), or a dict of tensors along samples; or a list of batches."""
    content = with_tensors(content)
    if isinstance(content, Mapping):
        return _named(content, path)
    if isinstance(content, (list, tuple)) and content and not all(isinstance(item, torch.Tensor) for item in content):
        return list(content)
    if isinstance(content, (list, tuple)) and len(content) > 4:
        return list(content)
    if not any(True for _ in tensors_of(content)):
        raise TargetError(f"{path} holds {type(content).__name__}, no tensors", hint="save x, (x, y) or {'x': x, 'y': y}")
    return content


def _refuse_unusual(content: Any, path: str) -> None:
    """Raises TargetError for tensors whose samples cannot be picked, or that unfold to more than a machine has."""
    for tensor in tensors_of(content):
        if tensor.layout != torch.strided or tensor.is_nested or tensor.is_quantized or tensor.is_meta:
            kinds = (("a quantized", tensor.is_quantized), ("a nested", tensor.is_nested), ("an empty (meta)", tensor.is_meta))
            kind = next((name for name, is_it in kinds if is_it), "a sparse")
            raise TargetError(f"{path} holds {kind} tensor", hint="save dense ones: x.to_dense(), x.dequantize()")
        unfolded = tensor.numel() * tensor.element_size()
        if unfolded > MOST_BYTES and unfolded > tensor.untyped_storage().nbytes():
            what = f"{path} holds a tensor {list(tensor.shape)} that repeats few numbers over {unfolded / 1e9:.3g} GB"
            raise TargetError(what, hint="save what it is made of, or some samples of it")


def _named(content: Mapping[str, Any], path: str) -> Any:
    tensors = {name: value for name, value in content.items() if isinstance(value, torch.Tensor) and value.ndim > 0}
    if not tensors:
        raise TargetError(f"{path} holds no arrays", hint="save them under the keys x and y")
    x = next((tensors[key] for key in _INPUT_KEYS if key in tensors), None)
    y = next((tensors[key] for key in _TARGET_KEYS if key in tensors), None)
    if x is not None and (y is not None or len(tensors) == 1):
        return (x, y) if y is not None else x
    return tensors if len(tensors) > 1 else next(iter(tensors.values()))


def batched(content: Any, limit: int, seed: int, path: str) -> list[Any]:
    """Shuffled batches of 32 samples of tensors along the samples [N, ...]: a tensor, a tuple or a dict of them."""
    lengths = {tensor.shape[0] if tensor.ndim else 0 for tensor in tensors_of(content)}
    if len(lengths) > 1:
        shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in _with_names(content))
        raise TargetError(f"{path} has different numbers of samples: {shapes}", hint="the first axes must have one length")
    count = lengths.pop()
    if count == 0:
        raise TargetError(f"{path} is empty", hint="it has no samples")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed), device="cpu")
    full = max(1, count // BATCH_SIZE)  # an incomplete last batch is left out
    return [_rows(content, order[i * BATCH_SIZE : (i + 1) * BATCH_SIZE]) for i in range(min(full, limit))]


def _rows(content: Any, index: torch.Tensor) -> Any:
    if isinstance(content, Mapping):
        return {name: _input(value[index]) if name not in _TARGET_KEYS else _target(value[index]) for name, value in content.items()}
    if isinstance(content, (tuple, list)):
        last = len(content) - 1
        return tuple(_input(v[index]) if i < last or last == 0 else _target(v[index]) for i, v in enumerate(content))
    return _input(content[index])


def _input(value: torch.Tensor) -> torch.Tensor:
    """Floats in torch's default precision; bytes of images in 0..1."""
    if value.dtype == torch.uint8:
        return value.to(torch.get_default_dtype()) / (255 if value.ndim > 2 else 1)
    if value.is_floating_point():
        return value.to(torch.get_default_dtype())
    return value if value.is_complex() or value.dtype == torch.bool else value.long()


def _target(value: torch.Tensor) -> torch.Tensor:
    return value.to(torch.get_default_dtype()) if value.is_floating_point() else value if value.is_complex() else value.long()


def _with_names(content: Any) -> list[tuple[str, torch.Tensor]]:
    if isinstance(content, Mapping):
        return [(str(name), value) for name, value in content.items()]
    if isinstance(content, (tuple, list)):
        return [("xy"[i] if len(content) == 2 else f"[{i}]", value) for i, value in enumerate(content)]
    return [("x", content)]


def read_table(file: Path) -> Any:
    """x [N, columns - 1] and y [N]: the column named target, label, y or class, else the last one. One column: x only."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            sample = stream.read(4096)
            stream.seek(0)
            delimiter = max(",;\t", key=sample.split("\n", 1)[0].count)
            numbered = [(reader.line_num, row) for reader in [csv.reader(stream, delimiter=delimiter)] for row in reader if row]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TargetError(f"{file} cannot be read: {error}", hint="it must be UTF-8 text with one sample per line") from error
    header = [cell.strip() for cell in numbered[0][1]] if numbered and not all(map(_is_number, numbered[0][1])) else []
    rows = numbered[1:] if header else numbered
    if not rows:
        raise TargetError(f"{file} is empty", hint="it has no rows of numbers")
    names = header or [str(i + 1) for i in range(len(rows[0][1]))]
    values = np.array([_numbers(row, line, names, file) for line, row in rows], dtype=np.float64)
    if len(names) == 1:
        return torch.from_numpy(values).to(torch.get_default_dtype())
    column = next((i for i, name in enumerate(names) if name.lower() in _TARGET_COLUMNS), len(names) - 1)
    target = values[:, column]
    few = len(np.unique(target)) <= min(_MOST_CLASSES, max(2, len(target) // 2))
    whole = few and target.min() >= 0 and bool(np.all(target == np.floor(target)))
    y = torch.from_numpy(target.astype(np.int64)) if whole else torch.from_numpy(target).to(torch.get_default_dtype())
    return torch.from_numpy(np.delete(values, column, axis=1)).to(torch.get_default_dtype()), y


def _numbers(row: list[str], line: int, names: list[str], file: Path) -> list[float]:
    place = Location(display_path(file), line)
    if len(row) != len(names):
        raise TargetError(
            f"{file}, line {line}: {len(row)} cells where {len(names)} are expected", hint="give every row as many", location=place
        )
    for name, cell in zip(names, row, strict=True):
        if not _is_number(cell):
            what = f"{cell.strip()!r} is not a number" if cell.strip() else "an empty cell"
            raise TargetError(
                f"{file}, line {line}, column {name}: {what}", hint="encode text as numbers and fill the gaps", location=place
            )
    return [float(cell) for cell in row]


def _is_number(cell: str) -> bool:
    try:
        float(cell)
    except ValueError:
        return False
    return True
