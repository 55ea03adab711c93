"""Logs of other programs: the same numbers come back, whoever wrote them."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gradcheck.errors import ConfigError
from gradcheck.logs.read import is_log, read
from gradcheck.logs.table import MOST_POINTS
from tests.logs import writers
from tests.logs.writers import falling

LOSS = writers.falling(60)
RATE = [1e-3 * (1 - i / 60) for i in range(60)]
NORM = [1.0 + i / 60 for i in range(60)]
SLASHES = {"train/loss": LOSS, "train/learning_rate": RATE, "train/grad_norm": NORM, "eval/loss": LOSS}
PLAIN = {"train_loss": LOSS, "lr": RATE, "grad_norm": NORM, "val_loss": LOSS}
OF_TRANSFORMERS = {"loss": LOSS, "learning_rate": RATE, "grad_norm": NORM, "eval_loss": LOSS}


def in_folder(write: Callable[..., Path], name: str, columns: writers.Columns, **more: Any) -> Callable[[Path], Path]:
    def written(folder: Path) -> Path:
        write(folder / name, columns, **more)
        return folder

    return written


WRITTEN: dict[str, Callable[[Path], Path]] = {
    "JSON lines": lambda p: writers.json_lines(p / "run.jsonl", PLAIN),
    "CSV": lambda p: writers.csv(p / "run.csv", SLASHES),
    "CSV, semicolons": lambda p: writers.csv(p / "run.csv", PLAIN, ";"),
    "Lightning": in_folder(writers.lightning, "metrics.csv", PLAIN),
    "TensorBoard": in_folder(writers.event_file, "events.out.tfevents.1.host", SLASHES),
    "TensorBoard, tensors": in_folder(writers.event_file, "events.out.tfevents.1.host", SLASHES, tensors=True),
    "W&B": in_folder(writers.wandb, "run-abc.wandb", SLASHES),
    "MLflow": lambda p: writers.mlflow(p / "run", PLAIN),
    "MLflow, database": lambda p: writers.mlflow_database(p / "mlflow.db", PLAIN),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_the_numbers_come_back(name: str, tmp_path: Path) -> None:
    path = WRITTEN[name](tmp_path)
    assert is_log(path)
    log = read(path, {})
    for curve, values in ((log.loss, LOSS), (log.rate, RATE), (log.norm, NORM), (log.evaluation, LOSS)):
        assert curve is not None and curve.values == pytest.approx(values, rel=1e-6)
        assert curve.steps == tuple(range(60))


def test_what_the_trainer_of_transformers_writes(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-9").mkdir()
    writers.trainer_state(tmp_path / "checkpoint-9" / "trainer_state.json", OF_TRANSFORMERS)
    assert is_log(tmp_path) and is_log(tmp_path / "checkpoint-9" / "trainer_state.json")
    log = read(tmp_path, {})
    assert log.loss is not None and log.loss.name == "loss" and log.loss.values == pytest.approx(LOSS)
    assert log.loss.steps[:3] == (0, 10, 20)
    assert log.evaluation is not None and log.evaluation.values == pytest.approx(LOSS[::5])


def test_records_that_go_over_the_end_of_a_block(tmp_path: Path) -> None:
    values = writers.falling(3000)
    log = read(writers.wandb(tmp_path / "run-abc.wandb", {"loss": values}, {"max_grad_norm": 0.5}), {})
    assert (tmp_path / "run-abc.wandb").stat().st_size > 3 * 32768
    assert log.loss is not None and log.loss.values == pytest.approx(values) and log.clip == 0.5
    given = read(writers.wandb(tmp_path / "run-def.wandb", {"loss": values}, {"max_grad_norm": 0.5}, given=True), {})
    assert given.clip == 0.5


def test_settings_tell_the_threshold_of_clipping(tmp_path: Path) -> None:
    path = writers.mlflow(tmp_path / "run", PLAIN, {"gradient_clip_val": "0.25"})
    assert read(path, {}).clip == 0.25 and read(path, {}, 2.0).clip == 2.0


@pytest.mark.parametrize("name", ["TensorBoard", "W&B", "JSON lines"])
def test_a_log_that_is_cut_off_is_read_up_to_there(name: str, tmp_path: Path) -> None:
    path = WRITTEN[name](tmp_path)
    file = path if path.is_file() else next(path.iterdir())
    file.write_bytes(file.read_bytes()[:-20])
    loss = read(file, {}).loss
    assert loss is not None and 55 <= len(loss.values) < 61


def test_what_is_not_finite_stays_and_a_step_written_twice_counts_once(tmp_path: Path) -> None:
    rows = [{"step": 0, "loss": 1.0}, {"step": 1, "loss": "nan"}, {"step": 1, "loss": 0.5}, {"step": 2, "loss": float("inf")}]
    path = tmp_path / "log.json"
    path.write_text(json.dumps(rows))
    loss = read(path, {}).loss
    assert loss is not None and loss.values == (1.0, 0.5, math.inf) and loss.finite.values == (1.0, 0.5)


def test_long_columns_keep_their_extremes(tmp_path: Path) -> None:
    values = writers.falling(3 * MOST_POINTS)
    values[12345] = 50.0
    loss = read(writers.json_lines(tmp_path / "run.jsonl", {"loss": values}), {}).loss
    assert loss is not None and len(loss.values) <= MOST_POINTS and 50.0 in loss.values and min(values) in loss.values


@pytest.mark.parametrize(
    ("columns", "loss", "evaluation"),
    [
        (("mean_loss", "boundary_loss", "data_loss"), "mean_loss", None),
        (("train_mse", "train_r2", "val_mse"), "train_mse", "val_mse"),
        (("nll_loss", "val_nll_loss"), "nll_loss", "val_nll_loss"),
        (("loss", "eval_set0_loss", "eval_set1_loss"), "loss", "eval_set0_loss"),
        (("policy_loss", "loss_total"), "loss_total", None),
    ],
)
def test_unusual_names_are_found_where_they_are_clear(columns, loss, evaluation, tmp_path: Path) -> None:
    log = read(writers.json_lines(tmp_path / "run.jsonl", {c: falling(30) for c in columns}), {})
    assert (log.loss and log.loss.name, log.evaluation and log.evaluation.name) == (loss, evaluation)
    for unclear in (("a_loss", "b_loss"), ("actor_loss",)):
        with pytest.raises(ConfigError, match="looks like a loss"):
            read(writers.json_lines(tmp_path / "other.jsonl", {c: falling(30) for c in unclear}), {})


SAID: dict[str, Callable[[int, float], str]] = {
    "nanoGPT": lambda i, v: f"iter {i * 10}: loss {v:.6f}, time 1{i}.23ms, mfu 3.4%",
    "torchtitan": lambda i, v: f"[titan] 2024-11-12 10:00:59,234 - INFO - \x1b[31mstep: {i * 10}  \x1b[32mloss: {v:.6f}  tps: 4,2\x1b[39m",
    "Megatron": lambda i, v: f" iteration  {i * 10}/ 500 | elapsed time (ms): 30.1 | lm loss: {v:.6E} | loss scale: 8.0 | grad norm: 1.5 |",
    "Trainer": lambda i, v: f"50%|##  | 9/20 [00:01<00:10]\r{{'loss': {v:.6f}, 'grad_norm': '1.5', 'step': {i * 10}}}",
    "bar": lambda i, v: f"Steps:  {i // 2}%|#  | {i * 10}/600 [00:01<00:10, step_loss={v:.6f}]",
    "epochs": lambda i, v: f"Epoch [{i // 20 + 1}/3], Step [{i % 20 * 10 + 10}/200], Loss: {v:.6f}",
    "only epochs": lambda i, v: f"Train Epoch: {i // 20} [{i % 20 * 64}/1280 (5%)]\tLoss: {v:.6f}",
    "JSON": lambda i, v: json.dumps({"mode": "train", "epoch": i // 20 + 1, "iter": i % 20 * 10 + 10, "loss": round(v, 6)}),
}


@pytest.mark.parametrize("name", SAID)
def test_what_programs_print_is_read_line_by_line(name: str, tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("\n".join(["Loaded 100 images of 3 classes", *map(SAID[name], range(60), LOSS)][name == "JSON" :]))
    log = read(tmp_path / "train.log", {})
    assert log.loss is not None and log.loss.values == pytest.approx(LOSS, abs=1e-5)
    assert log.loss.steps[-1] == (59 if name in ("only epochs", "bar") else 600 if name in ("epochs", "JSON") else 590)
    assert (log.norm is not None) == (name in ("Megatron", "Trainer"))


def test_parts_of_a_loss_are_added_where_no_whole_is_logged(tmp_path: Path) -> None:
    columns = {f"{t}/{p}_loss": LOSS for t in ("train", "val") for p in ("box", "cls")}
    log = read(writers.json_lines(tmp_path / "run.jsonl", columns), {})
    assert log.loss is not None and log.loss.name == "train/box_loss + train/cls_loss" and log.loss.values[3] == pytest.approx(2 * LOSS[3])
    assert log.evaluation is not None and log.evaluation.name == "val/box_loss + val/cls_loss"


def test_columns_can_be_named(tmp_path: Path) -> None:
    path = writers.csv(tmp_path / "run.csv", {"a": LOSS, "b": NORM})
    with pytest.raises(ConfigError, match="looks like a loss; its columns: a, b"):
        read(path, {})
    with pytest.raises(ConfigError, match="no column 'c'"):
        read(path, {"loss": "c"})
    assert read(path, {"loss": "b"}).loss == read(path, {"loss": "b", "norm": "a"}).loss


def table(head: str, row: Callable[[int, float], str], remark: str = "") -> str:
    return remark + "\n".join([head, *map(row, range(60), LOSS)])


def comma(number: float) -> str:
    return f"{number:.6f}".replace(".", ",")


TABLES = {
    "decimal commas": table("Schritt;step;loss", lambda i, v: f"{i};{i};{comma(v)}"),
    "decimal commas between tabs": table("step\tloss", lambda i, v: f"{i}\t{comma(v)}"),
    "between blanks": table("epoch  train_loss   lr", lambda i, v: f"{i:5d}  {v:.6f}  1e-3"),
    "remarks first": table("step,loss", lambda i, v: f"{i},{v:.6f}", "# lr = 0.1\n# seed = 1\n"),
    "names in a remark": table("# step loss", lambda i, v: f"{i} {v:.6e}"),
    "printed tensors": table("begin", lambda i, v: f"Epoch: {i} Loss: tensor({v:.6f}, device='cuda:0', grad_fn=<MeanBackward0>)"),
    "printed scalars of NumPy": table("begin", lambda i, v: f"{{'step': {i}, 'loss': np.float64({v:.6f})}}"),
    "a history of Keras": json.dumps({"loss": LOSS, "accuracy": LOSS, "params": {"epochs": 60}}),
}


@pytest.mark.parametrize("wide", [False, True])
@pytest.mark.parametrize("name", TABLES)
def test_tables_as_others_write_them(name: str, wide: bool, tmp_path: Path) -> None:
    path = tmp_path / ("history.json" if "Keras" in name else "log.txt")
    path.write_text(TABLES[name], encoding="utf-16" if wide and path.suffix == ".txt" else "utf-8")
    assert is_log(path)
    for place in (path, tmp_path) if path.suffix == ".txt" else (path,):
        loss = read(place, {}).loss
        assert loss is not None and loss.values == pytest.approx(LOSS, abs=1e-5) and loss.steps == tuple(range(60))


@pytest.mark.parametrize("word", ["NaN", "-nan(ind)", "1.#QNAN", "#NUM!", "tensor(nan, grad_fn=<MeanBackward0>)", "Infinity", "INF"])
def test_words_for_what_is_not_finite(word: str, tmp_path: Path) -> None:
    path = tmp_path / "log.txt"
    rows = [str(v) if i < 40 else word for i, v in enumerate(LOSS)]
    if "#" not in word and "ind" not in word:
        path.write_text("\n".join(f"Epoch {i}: loss = {v}" for i, v in enumerate(rows)))
        loss = read(path, {}).loss
        assert loss is not None and len(loss.values) == 60 and len(loss.finite.values) == 40
    if "tensor" not in word:
        path.write_text("\n".join(["step,loss", *(f"{i},{v}" for i, v in enumerate(rows))]))
        loss = read(path, {}).loss
        assert loss is not None and len(loss.values) == 60 and len(loss.finite.values) == 40
    path.write_text("\n".join(f"Banan {i}, info: loss {v}" for i, v in enumerate(LOSS)))
    assert read(path, {}).loss.finite.values == pytest.approx(LOSS)  # type: ignore[union-attr]


def test_of_several_runs_in_one_log_the_last_one_is_read(tmp_path: Path) -> None:
    def log(*rows: tuple[int, float], **more: float) -> Any:
        (tmp_path / "run.jsonl").write_text("".join(json.dumps({"step": s, "loss": v, "lr": v, **more}) + "\n" for s, v in rows))
        return read(tmp_path / "run.jsonl", {})

    first, broken = list(enumerate(falling(200))), [*enumerate(LOSS[:20]), *((i, math.nan) for i in range(20, 50))]
    twice = log(*first, *broken)
    assert twice.format == "JSON lines, the last of 2 runs" and len(twice.loss.values) == len(twice.rate.values) == 50
    resumed = log(*first[:100], *first[50:70])  # and killed again
    assert resumed.format == "JSON lines" and resumed.loss.steps == tuple(range(70))
    epochs = log(*((1 + s % 50, v) for s, v in first))
    assert epochs.loss.steps == epochs.rate.steps == tuple(range(1, 201)) and epochs.loss.values == pytest.approx([v for _, v in first])
    newest_first = log(*reversed(first))
    assert newest_first.loss.steps == tuple(range(200)) and newest_first.format == "JSON lines"
    path = tmp_path / "runs.csv"
    path.write_text("\n".join(f"epoch,loss\n{rows}" for rows in 3 * ["\n".join(f"{i},{v}" for i, v in enumerate(LOSS))]))
    loss = read(path, {}).loss
    assert loss is not None and loss.values == pytest.approx(LOSS)


@pytest.mark.parametrize("content", ["", "hello\nworld\n", "[]", "{}", '#{"t_start": 1.5}\nr,l,t\n20,20,0.5\n'])
def test_what_is_no_log_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(ConfigError):
        read(tmp_path / "x.txt", {})
    (tmp_path / "x.txt").unlink()
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        read(tmp_path, {})


def test_a_folder_of_several_runs_names_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        writers.lightning(tmp_path / name / "metrics.csv", PLAIN)
    with pytest.raises(ConfigError, match="it holds 2 runs"):
        read(tmp_path, {})
    assert read(tmp_path / "one", {}).loss is not None


def test_a_saved_run_of_gradcheck_is_no_log(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"target":"x","schema_version":1}')
    assert not is_log(tmp_path / "run.json") and not is_log(tmp_path / "missing.csv")


def test_no_torch_is_needed(tmp_path: Path) -> None:
    path = writers.json_lines(tmp_path / "run.jsonl", PLAIN)
    code = f"import sys; sys.modules['torch'] = None; sys.argv = ['gradcheck', 'report', {str(path)!r}]; "
    code += "from gradcheck.cli.main import main; main()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert run.returncode == 0 and "No findings in the log (7 rules passed, 1 not applicable)" in run.stdout, run.stderr


def test_the_real_writers_agree(tmp_path: Path) -> None:
    tensorboard = pytest.importorskip("tensorboard")
    assert tensorboard
    from torch.utils.tensorboard import SummaryWriter

    writer = SummaryWriter(str(tmp_path))
    for i, value in enumerate(LOSS):
        writer.add_scalar("Loss/train", value, i, new_style=i % 2 == 0)
    writer.close()
    loss = read(tmp_path, {}).loss
    assert loss is not None and loss.values == pytest.approx(LOSS, rel=1e-6)
