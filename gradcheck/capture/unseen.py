"""Why a run showed no training, and what to do: arguments that it lacks, processes that it starts, another way to start it."""

import math
import os
import re
import shlex
from pathlib import Path

from gradcheck.capture.script import Capture
from gradcheck.capture.spec import ScriptSpec
from gradcheck.errors import TargetError
from gradcheck.workload.source_sites import failure

CORRECT = "correct it: gradcheck runs the script as python would"


def nothing_seen(capture: Capture, spec: ScriptSpec) -> TargetError:
    """Why a run without any backward pass cannot be judged."""
    name, ending, error = spec.target, capture.ending, capture.error
    if spec.kind == "module" and isinstance(error, ModuleNotFoundError) and f"{spec.path}.".startswith(f"{error.name}."):
        return TargetError(f"there is no module {spec.path}", hint=f"run gradcheck where `python -m {spec.path}` works")
    if ending.how == "raised" and error is not None:
        return failure(f"{name} failed before its first backward pass", error, hint=_correct(spec, error))
    if ending.how == "exit":
        command = {"script": name, "module": f"-- python {name}"}.get(spec.kind)
        hint = f"give it the arguments that it needs: gradcheck scan {_with_arguments(command)}" if command else "correct it"
        return TargetError(f"{name} ended itself before its first backward pass: {ending.error}", hint=hint, location=ending.site)
    elsewhere = _elsewhere(capture.started)
    if ending.how == "budget":
        over = "its budget ran out before its first step" if spec.budget else "nothing had trained"
        hint = elsewhere or f"give it more: --budget {10 * math.ceil(capture.seconds / 5)}, of which the start of the script is a part"
        return TargetError(f"no training was seen in {capture.seconds:.0f} s of {name}: {over}", hint=hint)
    if capture.recorder.idle:
        what = f"{name} took {capture.recorder.idle} steps without a backward pass"
        return TargetError(f"no training was seen: {what}", hint="call loss.backward() before optimizer.step()")
    failed = capture.recorder.tape.failed
    if failed is not None:  # the script caught it
        return failure(f"no training was seen: {name} caught what its forward pass raised", failed[1], hint=CORRECT)
    hint = elsewhere or "it should train when it is run: does it need arguments (after --), or is it a model file (FILE.py:name)?"
    return TargetError(f"no training was seen: {name} ended after {capture.seconds:.1f} s without a backward pass", hint=hint)


def _with_arguments(command: str) -> str:
    return f"{command} ARGUMENTS" if command.startswith("-- ") else f"{command} -- ARGUMENTS"


def _correct(spec: ScriptSpec, error: BaseException) -> str:
    if spec.kind == "script" and isinstance(error, ImportError) and "relative import" in str(error):
        return f"it is a module of a package: {_as_module(Path(spec.path))}"
    if isinstance(error, EOFError) and spec.kind == "script" and "reading a line" in str(error):
        return f"it asks for input: gradcheck scan {spec.path} < ANSWERS.txt, or give what it asks for another way"
    return _device(spec) if _ABSENT.search(str(error)) else CORRECT


def _as_module(path: Path) -> str:
    """The command that runs a file as a module of its package, whose root is above every folder with an `__init__.py`."""
    root = path.resolve().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    if root == path.resolve().parent:  # folders without one are packages too
        root = Path.cwd()
    if not path.resolve().is_relative_to(root) or path.resolve().parent == root:
        return "run it from the folder above its package, with gradcheck scan -- python -m PACKAGE.MODULE"
    start = "" if root == Path.cwd() else f"cd {shlex.quote(os.path.relpath(root))} && "
    return f"{start}gradcheck scan -- python -m {'.'.join(path.resolve().relative_to(root).with_suffix('').parts)}"


# What torch says if a device is named that this machine does not have, and what scripts call the option that chooses another.
_ABSENT = re.compile(
    r"not compiled with CUDA|Found no NVIDIA|No CUDA GPUs|CUDA (driver|error: invalid device)|device when none is available|MPS device"
)
_CHOICES = {"--device": "--device cpu"} | {flag: flag for flag in ("--no-cuda", "--no_cuda", "--use-cpu", "--cpu")}
_CHOICE = 'device = torch.device("cuda" if torch.cuda.is_available() else "cpu")'


def _device(spec: ScriptSpec) -> str:
    """The command that runs a script on the CPU, where it has an option for it; else the line to write."""
    path = Path(spec.path)
    text = path.read_text("utf-8", "replace") if spec.kind == "script" and path.is_file() else ""
    option = next((given for name, given in _CHOICES.items() if re.search(f"""["']{name}["']""", text)), None)
    if option is not None:
        return f"this machine has no such device: gradcheck scan {spec.path} -- {option}"
    return f"this machine has no such device: write `{_CHOICE}`, and .to(device) there"


def _elsewhere(started: list[str]) -> str:
    """The next step, where other processes train."""
    if not started:
        return ""
    return f"it starts processes ({started[0]}), in which nothing is seen: scan what they run, or start it so that one process trains"
