"""Applies one peer to random workloads; benchmarks/peers.py runs this file in the peer's own environment.

    python benchmarks/peers_run.py PEER FIRST:END [--steps 101]

Prints a JSON line per workload: the seed, whether the peer reported anything of its highest severity (`error`) and of the
next one (`warning`), its messages as `severity kind: text`, one of each kind, the seconds, and what it crashed with.
Every peer is used as its own README shows, with its default thresholds, on a workload that nobody has touched; those that
watch a training watch the first steps of the very training that labels the workload.
"""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import io
import json
import logging
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from workloads import Case, draw

# The least with which every check of every peer has its data: torchmortem wants three measurements of the rank, one each 50
# steps, and neural-observatory looks at the parameters of a last step only where its number is a multiple of ten.
STEPS = 101
LONGEST = 90  # characters of a message
PATIENCE = 600.0  # seconds for one workload; then the process ends

Said = Iterator[tuple[str, str, str]]  # severity: "error", "warning" or "note"; kind; text


def training(case: Case, steps: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """The batches of the first steps of `workloads.train`."""
    generator = torch.Generator().manual_seed(case.seed + 1)
    step = 0
    while True:
        for batch in case.task.batches(generator):
            if step == steps:
                return
            yield batch
            step += 1


def torch_audit(case: Case, steps: int) -> Said:
    """Its wrapped loop ("the most accurate phase reporting"), which here audits every step and not one in a thousand."""
    from torch_audit import audit_dynamic

    with audit_dynamic(case.model, optimizer=case.optimizer, every_n_steps=1, fail_level="ERROR") as auditor:
        for x, y in training(case, steps):
            case.optimizer.zero_grad(set_to_none=True)
            loss = case.loss(auditor.forward(x), y)
            auditor.backward(loss)
            auditor.optimizer_step()
    severities = {"FATAL": "error", "ERROR": "error", "WARN": "warning"}
    for finding in auditor.finish(report=False).findings:
        yield severities.get(finding.severity.value, "note"), finding.rule_id, finding.message


def torchmortem(case: Case, steps: int) -> Said:
    from torchmortem import Autopsy

    with Autopsy(case.model, optimizer=case.optimizer) as autopsy:
        for x, y in training(case, steps):
            case.optimizer.zero_grad()
            loss = case.loss(case.model(x), y)
            loss.backward()
            case.optimizer.step()
            autopsy.step(loss=loss.item())
    severities = {"CRITICAL": "error", "WARNING": "warning"}
    for finding in autopsy.get_report().findings:
        kind = re.sub(r" in \S+$", "", finding.title).replace(" ", "-").lower()
        yield severities.get(finding.severity.name, "note"), kind, finding.summary


def neural_observatory(case: Case, steps: int) -> Said:
    from neural_observatory import Observatory

    observatory = Observatory(case.model)
    observatory.watch()
    for step, (x, y) in enumerate(training(case, steps)):
        observatory.step(step=step, epoch=step // len(case.batches))
        case.optimizer.zero_grad()
        case.loss(case.model(x), y).backward()
        case.optimizer.step()
    observatory.stop()
    severities = {"critical": "error", "warning": "warning"}
    for result in observatory.report().results:
        text = f"{result.layer_name}: {' '.join(result.warnings + result.info)}"
        yield severities.get(result.status.value, "note"), result.analyzer_name, text


def torchdiag(case: Case, steps: int) -> Said:
    """Its quick start, on one batch: it watches no training. Of what it prints as issues only dead neurons have a severity of
    its own ("CRITICAL" above half of a layer); a step that does not work at all counts as an error too, the rest as warnings."""
    import torchdiag

    x, y = next(training(case, 1))
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        torchdiag.summary(case.model)
        torchdiag.check_dead_neurons(case.model, x)
        torchdiag.verify_step(case.model, case.optimizer, case.loss, x, y)
        case.optimizer.zero_grad()
        case.loss(case.model(x), y).backward()
        torchdiag.check_gradients(case.model)
    yield from torchdiag_issues(printed.getvalue())


def torchdiag_issues(printed: str) -> Said:
    kinds = {
        "neurons dead": "dead-neurons",
        "vanishing": "vanishing",
        "exploding": "exploding",
        "disconnected": "no-gradient",
        "None gradients": "no-gradient",
        "not finite": "loss-not-finite",
        "No parameters changed": "no-update",
        "frozen": "all-frozen",
        " failed": "step-failed",
    }
    broken = {"loss-not-finite", "no-update", "all-frozen", "step-failed"}
    for issue in re.findall(r"^  • (.*)$", printed, re.MULTILINE) + re.findall(r"^✗ (.* FAILED.*)$", printed, re.MULTILINE):
        kind = next((kind for words, kind in kinds.items() if words.lower() in issue.lower()), "other")
        share = re.search(r"(\d+)% neurons dead", issue)
        yield "error" if kind in broken or (share and int(share[1]) > 50) else "warning", kind, issue


PEERS: dict[str, Callable[[Case, int], Said]] = {
    "torch-audit": torch_audit,
    "torchmortem": torchmortem,
    "neural-observatory": neural_observatory,
    "torchdiag": torchdiag,
}


def apply(peer: str, seed: int, steps: int) -> dict[str, Any]:
    case = draw(seed)
    kinds: dict[str, str] = {}
    crash = None
    started = time.perf_counter()
    try:
        for severity, kind, text in PEERS[peer](case, steps):
            kinds.setdefault(f"{severity} {kind}", text[:LONGEST])
    except Exception as error:
        crash = f"{type(error).__name__}: {error}"[:LONGEST]
    return {
        "seed": seed,
        "error": any(kind.startswith("error ") for kind in kinds),
        "warning": any(kind.startswith("warning ") for kind in kinds),
        "messages": [f"{kind}: {text}" for kind, text in sorted(kinds.items()) if not kind.startswith("note ")],
        "seconds": round(time.perf_counter() - started, 3),
        "crash": crash,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("seeds", help="FIRST:END")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    first, end = map(int, arguments.seeds.split(":"))
    for seed in range(first, end):
        faulthandler.dump_traceback_later(PATIENCE, exit=True)
        with contextlib.redirect_stdout(sys.stderr):  # stdout is for the lines
            row = apply(arguments.peer, seed, arguments.steps)
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
