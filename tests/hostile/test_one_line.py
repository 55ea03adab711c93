"""What is wrong with input, output or surroundings is one line and a next step, never a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gradcheck.cli import main
from gradcheck.cli.exit import exits
from gradcheck.saved_run import dumps
from gradcheck.types.report import Report
from tests.literals import measurement
from tests.report.html.pages import treated

ROOT = Path(__file__).parent.parent.parent
Run = Callable[..., tuple[int, str, str]]
HEAD = "import torch\nfrom torch import nn\n"
MODEL = HEAD + "def build_model():\n    return nn.Linear(8, 4)\n"


@pytest.fixture
def gradcheck(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run.json").write_text(dumps(Report("model.py", (), (), (measurement(),))))

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["gradcheck", *words])
        with pytest.raises(SystemExit) as ended:
            main.main()
        out, err = capsys.readouterr()
        return int(ended.value.code or 0), out, err

    return run


def refused(done: tuple[int, str, str], said: str) -> None:
    code, out, err = done
    assert code == 2 and "Traceback" not in err and "bug in gradcheck" not in err, err
    assert said in err and err.count("error:") == 1 and "help:" in err and not out, (out, err)


DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (DEEP, "nested too deeply"),
        ('{"schema_version": 1, "reports": ' + DEEP + "}", "nested too deeply"),
        ('{"schema_version": 1, "reports": []}', "no reports"),
        ('{"schema_version": 1, "reports": {}}', "no reports"),
        *((f'{{"schema_version": {v}}}', "schema_version") for v in ("-1", "0", "true", '"1"', "1.0", "null")),
        ('{"schema_version": 99}', "update gradcheck"),
    ],
)
def test_a_saved_run_that_is_none(text: str, said: str, gradcheck: Run) -> None:
    Path("bad.json").write_text(text)
    refused(gradcheck("report", "bad.json"), said)


def test_a_saved_run_without_measurements(gradcheck: Run) -> None:
    data = json.loads(Path("run.json").read_text()) | {"measurements": []}
    Path("bad.json").write_text(json.dumps(data))
    refused(gradcheck("report", "bad.json"), "no measurements")


def test_a_saved_run_with_a_byte_order_mark(gradcheck: Run) -> None:
    Path("bom.json").write_bytes(b"\xef\xbb\xbf" + Path("run.json").read_bytes())
    assert gradcheck("report", "bom.json")[0] in (0, 2)


@pytest.mark.parametrize("text", [DEEP, '{"schema_version": 0, "findings": []}', '{"schema_version": true, "findings": []}'])
def test_a_baseline_that_is_none(text: str, gradcheck: Run) -> None:
    Path("base.json").write_text(text)
    refused(gradcheck("report", "run.json", "--baseline", "base.json"), "is not a baseline")


@pytest.mark.skipif(not Path("/dev/zero").exists(), reason="needs devices")
@pytest.mark.parametrize("words", [["/dev/zero"], ["run.json", "--baseline", "/dev/zero"], ["run.json", "--config", "/dev/zero"]])
def test_a_file_without_an_end(words: list[str], gradcheck: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gradcheck.files.content.__defaults__", (1_000_000,))
    refused(gradcheck("report", *words), "more than 1 MB")


@pytest.mark.parametrize("name", ["la", "~nouser/x", "x" * 300, "y/" + "x" * 300])
def test_an_output_that_cannot_be(name: str, gradcheck: Run) -> None:
    Path("la").symlink_to("lb")
    Path("lb").symlink_to("la")
    code, _, err = gradcheck("report", "run.json", "--output", f"json:{name}")
    assert code == 2 and "Traceback" not in err and err.count("error:") == 1 and "help:" in err, err


@pytest.mark.parametrize("words", [["json:a.json", "sarif:./a.json"], ["json:a.json", "sarif:link.json"]])
def test_two_outputs_for_one_file(words: list[str], gradcheck: Run) -> None:
    Path("link.json").symlink_to("a.json")
    refused(gradcheck("report", "run.json", *(x for word in words for x in ("--output", word))), "two outputs")
    assert not Path("a.json").exists()


def test_an_output_over_the_input(gradcheck: Run) -> None:
    before = Path("run.json").read_bytes()
    refused(gradcheck("report", "run.json", "--output", "html:./run.json"), "would replace what is read")
    assert Path("run.json").read_bytes() == before


def sparse() -> None:
    torch.save(torch.eye(40).to_sparse(), "data.pt")


def expanded() -> None:
    torch.save(torch.ones(1, 8).expand(10**10, 8), "data.pt")


def meta() -> None:
    torch.save(torch.ones(40, 8, device="meta"), "data.pt")


def bomb() -> None:
    with zipfile.ZipFile("data.npz", "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w") as member:
        np.lib.format.write_array_header_1_0(member, {"descr": "<f4", "fortran_order": False, "shape": (2_500_000, 1000)})
        member.write(bytes(10_000))
    raw = Path("data.npz").read_bytes()
    size = (10_000_000_128).to_bytes(8, "little")
    # The sizes that the archive names are those of 10 GB, in fields of 64 bits.
    place = raw.rindex(b"PK\x01\x02")
    name = int.from_bytes(raw[place + 28 : place + 30], "little")
    extra = b"\x01\x00\x08\x00" + size
    entry = bytearray(raw[place : place + 46 + name])
    entry[24:28], entry[30:32] = b"\xff\xff\xff\xff", len(extra).to_bytes(2, "little")
    end = bytearray(raw[raw.rindex(b"PK\x05\x06") :])
    end[12:16] = (len(entry) + len(extra)).to_bytes(4, "little")
    Path("data.npz").write_bytes(raw[:place] + bytes(entry) + extra + bytes(end))


@pytest.mark.parametrize(("make", "said"), [(sparse, "sparse"), (expanded, "repeats few numbers"), (meta, "meta"), (bomb, "10 GB")])
def test_data_that_cannot_be_used(make: Callable[[], None], said: str, gradcheck: Run) -> None:
    Path("model.py").write_text(MODEL)
    make()
    (name,) = (p.name for p in Path().glob("data.*"))
    refused(gradcheck("scan", "model.py", "--data", name, "--fast", "-q"), said)


def test_an_image_that_unfolds(gradcheck: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    Path("model.py").write_text(MODEL)
    Path("images").mkdir()
    Image.new("L", (100, 100)).save("images/a.png")
    refused(gradcheck("scan", "model.py", "--data", "images", "--fast", "-q"), "cannot be read as an image")


def test_somebody_elses_lines_are_one(gradcheck: Run) -> None:
    forward = "class M(nn.Module):\n    def forward(self, x):\n        raise ValueError('a\\n::error::b\\nc')\n"
    text = HEAD + forward + "def build_model():\n    return M()\n"
    Path("model.py").write_text(text)
    code, _, err = gradcheck("scan", "model.py", "--input", "float32[4,8]", "--fast", "-q")
    assert code == 2 and not any(line.lstrip().startswith("::") for line in err.splitlines()), err


def test_what_torch_warns_of_is_shown_once_and_at_the_users_line() -> None:
    ours = str(ROOT / "gradcheck" / "capture" / "tape.py")
    names: dict[str, Callable[..., None]] = {}
    exec(compile("import warnings\n\ndef tap():\n    warnings.warn('sizes differ')\n", ours, "exec"), names)
    exec(compile("def step():\n    tap()\n", "train.py", "exec"), names)
    with warnings.catch_warnings(record=True) as shown:
        warnings.simplefilter("always")
        with exits():
            for _ in range(3):
                names["step"]()
            warnings.warn_explicit("sizes differ", UserWarning, "model.py", 7)
            for samples in (4, 2):
                warnings.warn_explicit(f"{samples} samples", UserWarning, "model.py", 9)
            warnings.warn_explicit("old", FutureWarning, "model.py", 8)
    assert [(w.filename, w.lineno) for w in shown] == [("train.py", 2), ("model.py", 9), ("model.py", 8)]


def test_a_small_recursion_limit_is_said(gradcheck: Run) -> None:
    text = MODEL + "import sys\nsys.setrecursionlimit(len(__import__('inspect').stack()) + 60)\n"
    Path("model.py").write_text(text)
    limit = sys.getrecursionlimit()
    try:
        code, _, err = gradcheck("scan", "model.py", "--input", "float32[4,8]", "--fast", "-q")
    finally:
        sys.setrecursionlimit(limit)
    assert "Traceback" not in err and "bug in" not in err and code in (0, 1, 2), err


@pytest.mark.parametrize(
    "text",
    [
        "class M(nn.Linear):\n    def __getattr__(self, name):\n        try:\n            return super().__getattr__(name)\n"
        "        except AttributeError:\n            return self\ndef build_model():\n    return M(8, 4)\n",
        "def build_model():\n    model = nn.Linear(8, 4)\n    torch.set_default_device('meta')\n    return model\n",
        "class M(nn.Linear):\n    def parameters(self, *a, **k):\n        return [1, 2]\ndef build_model():\n    return M(8, 4)\n",
        "class M(nn.Linear):\n    def modules(self):\n        return 7\ndef build_model():\n    return M(8, 4)\n",
        "class M(nn.Linear):\n    def __hash__(self):\n        raise TypeError('no')\ndef build_model():\n    return M(8, 4)\n",
        "class M(nn.Linear):\n    def __getattr__(self, name):\n        try:\n            return super().__getattr__(name)\n"
        "        except AttributeError:\n            raise RuntimeError(name) from None\ndef build_model():\n    return M(8, 4)\n",
        "class M(nn.Linear):\n    def forward(self, x):\n        return torch.nested.nested_tensor(list(super().forward(x)))\n"
        "def build_model():\n    return M(8, 4)\n",
        "class M(nn.Module):\n    def __init__(self):\n        super().__init__()\n"
        "        self.w = nn.Parameter(torch.randn(4, 8).to_sparse())\n"
        "    def forward(self, x):\n        return torch.sparse.mm(self.w, x.t()).t()\ndef build_model():\n    return M()\n",
        "class M(nn.Linear):\n    def forward(self, x):\n        return super().forward(x).to(torch.cfloat)\n"
        "def build_model():\n    return M(8, 4)\n",
    ],
)
def test_an_odd_model_is_measured_or_refused(text: str, gradcheck: Run) -> None:
    Path("model.py").write_text(HEAD + text)
    code, _, err = gradcheck("scan", "model.py", "--input", "float32[4,8]", "--loss", "mse_loss", "--fast", "-q")
    assert "Traceback" not in err and "bug in" not in err and code in (0, 1, 2), err


def test_a_function_of_the_standard_library_that_the_code_replaced_is_named(gradcheck: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(json, "dumps", None)
    refused(gradcheck("report", "run.json", "--allow-partial", "--format", "json"), "replaced json.dumps")


def traced(frame: object, event: str, given: object) -> None:
    raise ValueError("traced")


@pytest.mark.parametrize(
    ("holder", "name", "value", "raised", "said"),
    [
        (sys, "meta_path", [], ModuleNotFoundError("No module named 'x'"), "emptied sys.meta_path"),
        (sys, "modules", {}, KeyError("x"), "emptied sys.modules"),
        (sys, "path", sys.path, ModuleNotFoundError("No module named 'cProfile'", name="cProfile"), "emptied sys.path"),
        (torch.Tensor, "__add__", None, TypeError("'NoneType' object is not callable"), "replaced torch.Tensor.__add__"),
    ],
)
def test_what_everything_needs_and_the_code_took_away_is_named(
    holder: object, name: str, value: object, raised: Exception, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended, pytest.MonkeyPatch.context() as patch, exits():
        patch.setattr(holder, name, value)
        raise raised
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and "Traceback" not in err and err.count("error:") == 1 and "help:" in err, err


@pytest.mark.parametrize("start", [sys.settrace, sys.setprofile])
def test_a_function_that_traces_and_raises_is_named(start: Callable[[object], None], capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.gettrace(), sys.getprofile()
    try:
        with pytest.raises(SystemExit), exits():
            start(traced)
            threading.Thread(target=int).run()
    finally:
        sys.settrace(before[0])
        sys.setprofile(before[1])
    err = capsys.readouterr().err
    assert "sys.settrace" in err and "Traceback" not in err and "help:" in err, err


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs pipes")
def test_a_board_that_is_a_pipe(gradcheck: Run) -> None:
    os.mkfifo("run.live.json")
    refused(gradcheck("watch", "--attach", "run.json"), "is no file")


def test_a_long_value_is_not_quoted_in_full(gradcheck: Run) -> None:
    for line in (f"fail-on = '{'x' * 9000}'", f"{'x' * 9000} = 1", f"select = ['{'x' * 9000}']"):
        done = gradcheck("report", "run.json", "--config", line)
        refused(done, "xx")
        assert len(done[2]) < 2000


def test_a_curve_that_was_cut_off_is_drawn(gradcheck: Run) -> None:
    data = json.loads(dumps(treated()))
    for entry in data["trial"]["entries"]:
        entry["validation"]["low"] = entry["validation"]["low"][1:]
    Path("bad.json").write_text(json.dumps(data))
    assert gradcheck("report", "bad.json", "--output", "html:x.html")[0] == 1


def test_an_archive_with_a_name_that_is_no_text(gradcheck: Run) -> None:
    Path("model.py").write_text(MODEL)
    torch.save(torch.ones(40, 8), "data.pt")
    raw = Path("data.pt").read_bytes()
    Path("data.pt").write_bytes(raw.replace(b"data/version", b"data/versi\xff\xfe"))
    refused(gradcheck("scan", "model.py", "--data", "data.pt", "--fast", "-q"), "cannot be read")


class Strange(BaseException):
    pass


def test_what_is_no_exception_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exits():
        raise Strange("one\n::error::two")
    err = capsys.readouterr().err
    assert ended.value.code == 2 and "Traceback" not in err and "Strange: one ::error::two" in err and "\n::" not in err


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (RecursionError("maximum recursion depth exceeded"), "nested deeper"),
        (MemoryError(), "no memory left"),
        (FileNotFoundError(2, "No usable temporary directory found in ['/tmp']"), "TMPDIR"),
    ],
)
def test_what_the_surroundings_lack_is_no_bug(error: Exception, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended, exits():
        raise error
    err = capsys.readouterr().err
    assert ended.value.code == 2 and said in err and "Traceback" not in err and "bug in" not in err, err


class Odd:
    def __hash__(self) -> int:
        raise ValueError("odd")

    def forward(self, x: object) -> None:
        raise ValueError("odd")

    def parameters(self, recurse: bool = True, **flags: object) -> None:
        helper()


def helper() -> None:
    raise ValueError("odd")


@pytest.mark.parametrize(
    ("called", "given", "bug"),
    [(Odd().__hash__, (), False), (Odd().parameters, (True,), False), (Odd().forward, ({},), True), (helper, (), True)],
)
def test_what_all_ask_of_an_object_is_the_users_and_what_gradcheck_gave_it_may_be_a_bug(
    called: Callable[..., object], given: tuple[object, ...], bug: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit), exits():
        threading.Thread(target=called, args=given).run()  # from a frame that is not the user's
    err = capsys.readouterr().err
    assert ("this is a bug in gradcheck" in err, "Traceback" in err) == (bug, bug), err
    assert bug or ("test_one_line.py:" in err and err.count("error:") == 1), err


def test_a_command_without_an_end_of_quotation(gradcheck: Run) -> None:
    refused(gradcheck("bisect", 'a "b', "t.py"), "No closing quotation")


def test_a_folder_that_the_code_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    with pytest.raises(SystemExit) as ended, exits():
        os.rmdir(tmp_path / "gone")
        os.getcwd()
    assert ended.value.code == 2 and "the working directory is gone" in capsys.readouterr().err


# -------------------------------------------------------------- in a process of its own


def shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    (folder / "run.json").write_text(dumps(Report("model.py", (), (), (measurement(),))))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "GRADCHECK": f"{sys.executable} -m gradcheck"}
    return subprocess.run(["sh", "-c", command], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs devices")
@pytest.mark.parametrize("format", ["full", "json", "html", "concise"])
def test_a_full_disk_behind_stdout(format: str, tmp_path: Path) -> None:
    done = shell(f"$GRADCHECK report run.json --allow-partial --format {format} >/dev/full", tmp_path)
    assert done.returncode == 2 and done.stderr.count("error:") == 1 and "No space left" in done.stderr, done.stderr


@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("$GRADCHECK report run.json >&-", 2),
        ("$GRADCHECK report run.json >/dev/full 2>/dev/full", 2),
        ("$GRADCHECK rules >/dev/full", 2),
        ("$GRADCHECK report run.json 2>&- >/dev/null", 0),
        ("mkdir gone && cd gone && rmdir ../gone && $GRADCHECK report ../run.json", 2),
        ("COLUMNS=0 $GRADCHECK report run.json --allow-partial | grep -q rule", 0),
        ("COLUMNS=0 $GRADCHECK report run.json --allow-partial --output full:x.txt >/dev/null; grep -q rule x.txt", 0),
    ],
)
def test_surroundings(command: str, code: int, tmp_path: Path) -> None:
    done = shell(command, tmp_path)
    assert done.returncode == code and "Traceback" not in done.stderr, (done.returncode, done.stderr)


def test_a_row_of_a_saved_run_that_is_out_of_range() -> None:
    from gradcheck.report.html import heatmap

    class Loose:
        rows = ((1.0, 2.0),)

        def code(self, value: float) -> int:
            return 300 if value > 1 else -5

    assert heatmap.encoded(Loose()) == "AP8="  # type: ignore[arg-type]
