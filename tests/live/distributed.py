"""Trainings on several processes, watched: `python -m tests.live.distributed FOLDER`, under torchrun's variables.

Each rank leaves FOLDER/RANK.json: for each kind of training a digest of its weights and random state, and what its board said.
All in one pair of processes: starting them is what takes time.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

import gradcheck
from gradcheck.errors import TargetError
from gradcheck.live import ranks

STEPS, EVERY = 22, 5
KINDS = ("ddp", "fsdp", "seeds", "no-sync", "local", "nan", "fewer", "scan", "lead")


def train(kind: str, watched: bool) -> dict[str, Any]:
    """One rank's run. `kind`: what is done to it."""
    rank = dist.get_rank()
    torch.manual_seed(rank if kind == "seeds" else 0)
    model = made(kind)
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    stop = "error" if kind == "no-sync" else None
    context: AbstractContextManager[Any] = gradcheck.watch(model, optimizer, every=EVERY, stop_on=stop) if watched else nullcontext()
    generator = torch.Generator().manual_seed(100 + rank)
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


def made(kind: str) -> nn.Module:
    model = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 5))
    if kind == "fsdp":
        for module in model:
            if isinstance(module, nn.Linear):
                fully_shard(module)
        return fully_shard(model)
    return model if kind in ("seeds", "fewer", "local") else DistributedDataParallel(model)


def digest(model: nn.Module) -> str:
    found = hashlib.sha256(torch.get_rng_state().numpy().tobytes())
    for p in model.parameters():
        part = p.detach().to_local() if hasattr(p, "to_local") else p.detach()
        found.update(part.numpy().tobytes())
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


def scanned() -> dict[str, Any]:
    torch.manual_seed(0)
    batch = torch.randn(32, 20), torch.randint(0, 5, (32,))
    model = made("ddp")
    found = gradcheck.scan(model, batch, steps=4)
    try:
        gradcheck.scan(made("fsdp"), batch, steps=4)
        refused = ""
    except TargetError as error:
        refused = error.message
    return {"rules": len(found.rules), "layers": len(found.measurements[0].layers), "refused": refused}


def main() -> None:
    dist.init_process_group("gloo")
    rank, said = dist.get_rank(), {}
    for kind in KINDS:
        ranks.PATIENCE = 0.5 if kind == "lead" else 30.0  # where one rank is not watched, the other waits for nothing
        if kind == "scan":
            said[kind] = scanned()
        else:
            said[kind] = {"watched": train(kind, kind != "lead" or rank == 0)}
        if kind in ("ddp", "fsdp"):
            said[kind]["bare"] = train(kind, False)
        dist.barrier()
    (Path(sys.argv[1]) / f"{rank}.json").write_text(json.dumps(said))
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
