"""Data files: every format, and what is wrong with them."""

from __future__ import annotations

import csv
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gradcheck.errors import TargetError
from gradcheck.loading.data_files import read_data
from tests.loading.conftest import NET, Loader, said

X, Y = torch.randn(70, 4), torch.randint(3, (70,))


def save_pt(content: Any, name: str = "d.pt") -> str:
    torch.save(content, name)
    return name


def save_npz(**arrays: Any) -> str:
    np.savez("d.npz", **arrays)
    return "d.npz"


def save_safetensors(content: dict[str, torch.Tensor]) -> str:
    from safetensors.torch import save_file

    save_file(content, "d.safetensors")
    return "d.safetensors"


def save_csv(rows: list[list[Any]], header: list[str] | None = None) -> str:
    with open("d.csv", "w", newline="") as file:
        csv.writer(file).writerows([*([header] if header else []), *rows])
    return "d.csv"


PAIRS = {
    "pt tuple": lambda: save_pt((X, Y)),
    "pt dict": lambda: save_pt({"inputs": X, "targets": Y}),
    "pt Xy": lambda: save_pt({"X": X.double(), "y": Y.int()}),
    "safetensors": lambda: save_safetensors({"data": X, "labels": Y}),
    "npz": lambda: save_npz(x=X.numpy().astype("float64"), y=Y.numpy()),
    "csv": lambda: save_csv([[*map(float, x), int(y)] for x, y in zip(X, Y, strict=True)]),
    "csv with header": lambda: save_csv([[int(y), *map(float, x)] for x, y in zip(X, Y, strict=True)], ["label", "a", "b", "c", "d"]),
}


@pytest.mark.parametrize("save", PAIRS.values(), ids=PAIRS.keys())
def test_inputs_and_class_labels_in_shuffled_batches_of_32(folder: Path, save: Any) -> None:
    path = save()
    data = read_data(path, 32, 0)
    assert [tuple(x.shape) for x, _ in data.batches] == [(32, 4), (32, 4)]
    x, y = data.batches[0]
    assert x.dtype == torch.float32 and y.dtype == torch.int64
    rows = [int((X - row).abs().sum(1).argmin()) for row in x]
    assert torch.equal(Y[rows], y) and rows != sorted(rows)
    assert torch.equal(read_data(path, 32, 0).batches[0][0], x)
    assert not torch.equal(read_data(path, 32, 1).batches[0][0], x)


def test_files_without_targets(folder: Path) -> None:
    np.save("d.npy", X.numpy())
    for path in ("d.npy", save_pt(X), save_npz(x=X.numpy()), save_csv([[float(v)] for v in X[:, 0]])):
        batch = read_data(path, 1, 0).batches[0]
        assert isinstance(batch, torch.Tensor) and batch.dtype == torch.float32 and len(batch) == 32


def test_a_list_of_batches_stays_as_it_is(folder: Path) -> None:
    data = read_data(save_pt([(X[:8], Y[:8]), (X[8:16], Y[8:16])]), 32, 0)
    assert len(data.batches) == 2 and torch.equal(data.batches[0][0], X[:8])


def test_other_keys_are_keyword_arguments(folder: Path) -> None:
    batch = read_data(save_npz(input_ids=Y[:, None].numpy(), mask=np.ones((70, 1), bool)), 1, 0).batches[0]
    assert batch["input_ids"].dtype == torch.int64 and batch["mask"].dtype == torch.bool


def test_byte_images_are_scaled_to_one(folder: Path) -> None:
    x, _ = read_data(save_npz(images=np.full((4, 3, 8, 8), 255, np.uint8), labels=np.arange(4)), 1, 0).batches[0]
    assert x.dtype == torch.float32 and float(x.max()) == 1.0


def test_a_folder_of_images_with_classes(folder: Path) -> None:
    from PIL import Image

    for name, colour in (("cat", (255, 0, 0)), ("dog", (0, 0, 255))):
        Path("photos", name).mkdir(parents=True)
        for i in range(3):
            Image.new("RGB", (10 + i, 8), colour).save(f"photos/{name}/{i}.png")
    x, y = read_data("photos", 4, 0).batches[0]
    assert x.shape[:2] == (6, 3) and 0 <= float(x.min()) <= float(x.max()) == 1
    assert all(float(image[0].mean()) == (1.0 if label == 0 else 0.0) for image, label in zip(x, y, strict=True))


def test_a_column_of_measurements_is_a_regression_target(folder: Path) -> None:
    _, y = read_data(save_csv([[i, i * 0.37] for i in range(40)], ["x", "out"]), 1, 0).batches[0]
    assert y.dtype == torch.float32


def test_targets_of_a_file_are_fitted_to_the_loss(loaded: Loader, folder: Path) -> None:
    path = save_csv([[*map(float, x), int(y > 0)] for x, y in zip(X, Y, strict=True)])
    source = NET.replace("nn.Linear(width, 3)", "nn.Linear(width, 1)") + "loss_fn = nn.BCEWithLogitsLoss()"
    w = loaded(source, data=path)
    assert w.batches[0][1].shape == (32, 1) and w.batches[0][1].dtype == torch.float32
    assert float(w.training_step(w.model, w.batches[0]).detach()) == pytest.approx(0.7, abs=0.4)
    assert "d.csv" in said(w, "data")


class Opaque:
    pass


def write_bytes(name: str, content: bytes) -> str:
    Path(name).write_bytes(content)
    return name


BROKEN = {
    "pickled pt": (lambda: save_pt({"x": Opaque()}), "pickled"),
    "plain pickle": (lambda: write_bytes("d.pt", pickle.dumps({"x": Opaque()})), "d.pt"),
    "object npz": (lambda: save_npz(x=np.array([Opaque()], dtype=object)), "pickled"),
    "no bytes": (lambda: write_bytes("d.pt", b""), "empty"),
    "garbage pt": (lambda: write_bytes("d.pt", b"garbage"), "d.pt"),
    "garbage npz": (lambda: write_bytes("d.npz", b"garbage" * 9), "d.npz"),
    "garbage safetensors": (lambda: write_bytes("d.safetensors", b"garbage" * 9), "cannot be read"),
    "no samples": (lambda: save_pt((X[:0], Y[:0])), "empty"),
    "lengths": (lambda: save_pt({"x": X, "y": Y[:-1]}), r"x \[70, 4\], y \[69\]"),
    "no tensors": (lambda: save_pt({"a": 1}), "no arrays"),
    "suffix": (lambda: write_bytes("d.xlsx", b"1"), "not a data file that gradcheck reads"),
    "missing": (lambda: "absent.pt", "there is no data file"),
    "word in csv": (lambda: save_csv([[1, 2], [3, "four"]], ["a", "b"]), "line 3, column b: 'four' is not a number"),
    "gap in csv": (lambda: save_csv([[1, 2], ["", 4]]), "line 2, column 1: an empty cell"),
    "ragged csv": (lambda: save_csv([[1, 2], [3]]), "line 2: 1 cells where 2"),
    "header only": (lambda: save_csv([], ["a", "b"]), "empty"),
    "binary csv": (lambda: write_bytes("d.csv", b"\xff\xfe\x00\x80"), "cannot be read"),
}


@pytest.mark.parametrize(("make", "message"), BROKEN.values(), ids=BROKEN.keys())
def test_an_unusable_file_is_one_error_with_the_place_and_the_next_step(folder: Path, make: Any, message: str) -> None:
    with pytest.raises(TargetError, match=message) as caught:
        read_data(make(), 4, 0)
    assert caught.value.hint


def test_unpickling_runs_no_code(folder: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return Path.touch, (Path("boom"),)

    torch.save(Bomb(), "d.pt")
    with pytest.raises(TargetError):
        read_data("d.pt", 1, 0)
    assert not Path("boom").exists()


def test_an_empty_folder_and_a_broken_image(folder: Path) -> None:
    Path("photos").mkdir()
    with pytest.raises(TargetError, match="no images"):
        read_data("photos", 1, 0)
    Path("photos/a.png").write_bytes(b"not an image")
    with pytest.raises(TargetError, match=r"a\.png"):
        read_data("photos", 1, 0)
