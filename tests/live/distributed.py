"""Trainings on several processes, watched: `python -m tests.live.distributed FOLDER [KIND ...]`, under torchrun's variables.

Each rank leaves FOLDER/RANK.json: for each kind of training a digest of its weights and random state, and what its board said.
All in one pair of processes: starting them is what takes time.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import hashlib
import io
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import gradcheck
from gradcheck.errors import TargetError
from gradcheck.measure import faithful, fitting
from gradcheck.workload import ranks

STEPS, EVERY = 22, 5
KINDS = ("ddp", "fsdp", "seeds", "no-sync", "local", "nan", "fewer", "same", "scan", "checks", "apart", "lead", "fail")


def train(kind: str, watched: bool) -> dict[str, Any]:
    """One rank's run. `kind`: what is done to it."""
    rank = dist.get_rank()
    torch.manual_seed(rank if kind == "seeds" else 0)
    model = made(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    stop = "error" if kind == "no-sync" else None
    context: AbstractContextManager[Any] = gradcheck.watch(model, optimizer, every=EVERY, stop_on=stop) if watched else nullcontext()
    generator = torch.Generator().manual_seed(100 + (rank if kind != "same" else 0))
    answer = torch.randn(20, 5, generator=torch.Generator().manual_seed(1))
    taken = 0
    with context as board:
        for step in range(STEPS):
            if kind == "fewer" and rank == 1 and step == 9:
                break
            x = torch.randn(64, 20, generator=generator)
            y = (x @ answer).argmax(1)
            if kind == "nan" and rank == 1 and step == 10:
                x[3] = float("nan")
            optimizer.zero_grad()
            with model.no_sync() if kind == "no-sync" else nullcontext():
                F.cross_entropy(model(x), y).backward()
            optimizer.step()
            if kind == "local" and step % 5 == 4:
                for p in model.parameters():
                    dist.all_reduce(p.data)
                    p.data /= dist.get_world_size()
            taken += 1
    said = {"steps": taken, "digest": digest(model)}
    return said if not watched or board is None else said | told(board)


def made(kind: str, dead: bool = False) -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    if dead:
        nn.init.constant_(model[2].bias, -50.0)
    if kind == "one":
        return model
    if kind in ("tp", "2d"):
        count = dist.get_world_size()
        mesh = init_device_mesh("cpu", (1, count) if kind == "tp" else (2, count // 2), mesh_dim_names=("data", "tensor"))
        parallelize_module(model, mesh["tensor"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
        return model if kind == "tp" else fully_shard(model, mesh=mesh["data"])
    if kind == "fsdp":
        for module in model:
            if isinstance(module, nn.Linear):
                fully_shard(module)
        return fully_shard(model)
    return model if kind in ("seeds", "fewer", "local") else DistributedDataParallel(model)


def digest(model: nn.Module, optimizer: torch.optim.Optimizer | None = None) -> str:
    found = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for p in model.parameters():
        state = optimizer.state[p].items() if optimizer is not None else ()
        for tensor in (p, *([p.grad] if p.grad is not None else []), *(value for _, value in sorted(state))):
            part = tensor.detach().to_local() if hasattr(tensor, "to_local") else tensor.detach()
            found.update(f"{type(tensor)} {tensor.shape} {tensor.requires_grad}".encode() + part.numpy().tobytes())
    return found.hexdigest()


def told(board: gradcheck.Board) -> dict[str, Any]:
    m = board.report().measurements[0]
    return {
        "leads": board.leads,
        "failure": repr(board.failure) if board.failure else "",
        "stopped": board.stopped.code if board.stopped else "",
        "findings": [(f.code, f.severity, f.message) for f in board.findings],
        "losses": m.probe.losses,
        "norms": m.probe.gradient_norms,
        "ranks": dataclasses.asdict(m.ranks) if m.ranks else None,
        "missing": {x.what: x.why for x in m.not_measured},
        "samples": m.layers[0].snapshots[0].output.count if m.layers else 0,
        "parameters": [(p.name, list(p.shape), p.std, dataclasses.asdict(p.steps[0])) for p in m.parameters],
    }


def batches(rank: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """One rank's part of four batches."""
    generator = torch.Generator().manual_seed(7)
    answer = torch.randn(20, 5, generator=generator)
    wholes = (torch.randn(48, 20, generator=generator) for _ in range(4))
    parts = (x.chunk(count)[rank] for x in wholes)
    return [(x, (x @ answer).argmax(1)) for x in parts]


def scanned(kind: str, rank: int, count: int) -> dict[str, Any]:
    """Said by the scan of a net whose first layer is dead on arrival, and a digest of what it was given, before and after."""
    torch.manual_seed(0)
    model = made(kind, dead=True)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    groups = {"tp": 1, "2d": 2}.get(kind, count)  # of ranks with batches of their own
    data = batches(rank * groups // count, groups)
    F.cross_entropy(model(data[0][0]), data[0][1]).backward()
    optimizer.step()
    before = digest(model, optimizer)
    config = {"steps": 12, "budget": 300, "select": ["ACT002", "GRAD004", "INIT005", "NORM", "REG002"]}
    report = gradcheck.scan(model, data, loss=F.cross_entropy, optimizer=optimizer, config=config)
    m = report.measurements[0]
    return {
        "same": digest(model, optimizer) == before,
        "findings": sorted((f.code, f.severity) for f in report.findings),
        "rules": len(report.rules),
        "losses": m.probe.losses,
        "norms": m.probe.gradient_norms,
        "layers": [(x.name, x.type, x.units, x.dead_units) for x in m.layers],
        "outputs": [dataclasses.asdict(s.output) for x in m.layers for s in x.snapshots[:2] if s.output],
        "parameters": [(p.name, p.shape, p.mean, p.std, p.largest, [dataclasses.asdict(s) for s in p.steps]) for p in m.parameters],
        "missing": {x.what: x.why for x in m.not_measured},
        "said": [a.text for a in m.assumptions if a.about == "ranks"],
    }


def terms(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss of which one part trains nothing."""
    output = model(batch[0])
    return F.cross_entropy(output, batch[1]) + output.sign().mean()


def summed(model: nn.Module, batch: Any) -> torch.Tensor:
    """A loss of which one part is summed."""
    output = model(batch[0])
    return F.cross_entropy(output, batch[1]) + output.square().sum()


def checked(kind: str, rank: int, count: int) -> dict[str, Any]:
    """What the checks say that take derivatives by all parameters, of a training that learns nothing, and how batches are cut."""
    torch.manual_seed(0)
    model, data = made(kind), batches(rank, count)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-7)
    config = {"steps": 25, "budget": 300, "select": ["GRAD005", "LOSS009", "OPT001", "GRAPH005"]}
    before = faithful.LARGE, fitting.LARGE, fitting.FEWEST, fitting.WANTED
    faithful.LARGE = fitting.LARGE = 100
    try:
        m = gradcheck.scan(model, data, training_step=terms, optimizer=optimizer, config=config).measurement
        fitting.FEWEST = fitting.WANTED = 10**9
        cut = gradcheck.scan(model, data, loss=F.cross_entropy, optimizer=optimizer, config={"steps": 5, "select": ["GRAD004"]}).measurement
        unbalanced = gradcheck.scan(model, data, training_step=summed, optimizer=optimizer, config={"steps": 5, "select": ["LOSS010"]})
    finally:
        faithful.LARGE, fitting.LARGE, fitting.FEWEST, fitting.WANTED = before
    return {
        "samples": m.samples and dataclasses.asdict(m.samples),
        "idle": [(t.kind, t.operation) for t in m.idle_terms],
        "balance": (found := unbalanced.measurement.imbalance) and (found.ratio, found.gradients),
        "sharpness": m.sharpness and m.sharpness.value,
        "missing": sorted(n.what for n in m.not_measured),
        "cut": [a.text.partition(":")[0] for a in cut.assumptions if a.about == "batches"],
    }


def apart(rank: int) -> dict[str, Any]:
    """A stage of a pipeline on each rank, the second of them dead; and a scan of replicas that rank 0 alone asks for."""
    torch.manual_seed(0)
    stage = made("one", dead=rank == 1)
    report = gradcheck.scan(stage, batches(0, 1), loss=F.cross_entropy, config={"steps": 12, "select": ["ACT002"]})
    said: dict[str, Any] = {"stage": [f.code for f in report.findings], "why": [n.why for n in report.measurement.not_measured]}
    replica, heard = made("ddp"), io.StringIO()
    if rank == 0:
        ranks.PATIENCE, ranks.SOON = 0.5, 0.1
        with contextlib.redirect_stderr(heard):
            alone = gradcheck.scan(replica, batches(0, 1), loss=F.cross_entropy, config={"steps": 2, "select": ["GRAD004"]})
        said |= {"heard": heard.getvalue(), "alone": [n.why for n in alone.measurement.not_measured]}
    else:
        ranks._meetings["scan"] += 1  # rank 0 was at that meeting
    return said


def failing(rank: int) -> str:
    """What a rank is told when the training step raises on the last one."""

    def step(model: nn.Module, batch: Any) -> torch.Tensor:
        if rank == dist.get_world_size() - 1:
            raise ValueError("no such file")
        return F.cross_entropy(model(batch[0]), batch[1])

    try:
        gradcheck.scan(made("ddp" if dist.get_world_size() == 2 else "fsdp"), batches(rank, dist.get_world_size()), training_step=step)
    except TargetError as error:
        return error.message
    return ""


def main() -> None:
    dist.init_process_group("gloo")
    gc.freeze()  # as tests/conftest.py does
    rank, said = dist.get_rank(), {}
    for kind in sys.argv[2:] or KINDS:
        ranks.PATIENCE = 0.5 if kind == "lead" else 30.0  # where one rank is not watched, the other waits for nothing
        if kind == "fail":
            said[kind] = failing(rank)
            break  # the ranks are not together any more
        if kind == "scan":
            count = dist.get_world_size()
            said[kind] = {of: scanned(of, rank, count) for of in ("ddp", "fsdp", "tp" if count == 2 else "2d")}
        elif kind == "checks":
            said[kind] = {of: checked(of, rank, dist.get_world_size()) for of in ("fsdp", "tp")}
        elif kind == "apart":
            said[kind] = apart(rank)
        else:
            said[kind] = {"watched": train(kind, kind != "lead" or rank == 0)}
        if kind in ("ddp", "fsdp"):
            said[kind]["bare"] = train(kind, False)
        dist.barrier()
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
