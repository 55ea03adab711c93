"""Processes beside the script's own: those that it starts, whose work is not seen, and those that run it, whose groups are kept alive."""

import contextlib
import gc
import multiprocessing.process
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from gradcheck.capture.events import OptimizerTrace
from gradcheck.instrument.patches import Patches
from gradcheck.rank import launched
from gradcheck.types.gauges import RankFacts
from gradcheck.workload.lockstep import everyone
from gradcheck.workload.replicas import are_divided, compare
from gradcheck.workload.sharding import is_sharded, noting_shards, trains_on_parts
from gradcheck.workload.source_sites import origin_of
from gradcheck.workload.workload import Workload


def note_processes(patches: Patches, started: list[str]) -> None:
    """While the patches hold, notes the Python processes that the script starts, without the workers of data loaders."""

    def of_command(original: Callable[..., Any]) -> Callable[..., Any]:
        def popen(self: Any, args: Any, *more: Any, **named: Any) -> Any:
            words = args.split() if isinstance(args, str) else [str(a) for a in args] if isinstance(args, (list, tuple)) else []
            if words and ("python" in Path(words[0]).name or words[0].endswith(".py")):
                started.append(" ".join(["python", *words[1:3]]))
            return original(self, args, *more, **named)

        return popen

    def of_function(original: Callable[..., Any]) -> Callable[..., Any]:
        def start(self: Any) -> Any:
            name = getattr(getattr(self, "_target", None), "__name__", "")
            if name != "_worker_loop":
                started.append(name or type(self).__name__)
            return original(self)

        return start

    def of_copy(original: Callable[[], int]) -> Callable[[], int]:
        def fork() -> int:
            if origin_of(sys._getframe(1).f_code.co_filename) == "user":
                started.append("os.fork")
            return original()

        return fork

    if hasattr(os, "fork"):
        patches.wrap(os, "fork", of_copy)
    patches.wrap(subprocess.Popen, "__init__", of_command)
    patches.wrap(multiprocessing.process.BaseProcess, "start", of_function)


def rank_facts(watched: OptimizerTrace, workload: Workload, same: int) -> RankFacts:
    """Replicas of what an optimizer moved, before its first steps; all ranks ask together. `same`: batches that all ranks share."""
    moved = {id(p) for p in watched.parameters}
    wrapper = next((x for x in gc.get_objects() if issubclass(type(x), DDP) and any(id(p) in moved for p in x.parameters())), None)
    told = everyone([w.replicas for w in watched.members])
    count, model = len(told), workload.model
    if any(everyone(are_divided(count) or (wrapper is not None and dist.get_world_size(wrapper.process_group) < count))):
        return RankFacts(count, same_batches=same if trains_on_parts(model) else 0)
    known = {id(p): name for name, p in model.named_parameters()}
    names = [known.get(id(p), "") for group in workload.optimizer.param_groups for p in group["params"]]
    ignored = {name for name in names if wrapper is not None and any(f".{n}".endswith(f".{name}") for n in wrapper.parameters_to_ignore)}
    steps = []
    for i in range(min(len(replicas) for rank in told for replicas in rank)):
        shares = [{n: x for n, x in zip(names, (x for of in rank for x in of[i]), strict=False) if x is not None} for rank in told]
        steps.append(compare(i, shares, frozenset(names) - ignored - {""}))
    whole = not is_sharded(model) or trains_on_parts(model)
    return RankFacts(count, type(wrapper).__name__ if wrapper else "", tuple(s for s in steps if s), same_batches=same if whole else 0)


@contextmanager
def ranks_kept() -> Iterator[list[Any]]:
    """Nothing happens to a script of one process. Gives the modules whose shards cannot be read, as they are made."""
    if launched()[1] < 2 or not dist.is_available():
        yield []
        return
    from torch.distributed.fsdp import FullyShardedDataParallel
    from torch.distributed.fsdp._fully_shard._fsdp_param_group import FSDPParamGroup

    patches, ended, hidden = Patches(), list[tuple[Any, ...]](), list[Any]()
    with noting_shards() as groups:

        def noted(made: list[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
            def noting(make: Callable[..., None]) -> Callable[..., None]:
                def init(self: Any, *args: Any, **kwargs: Any) -> None:
                    make(self, *args, **kwargs)
                    made.append(self)

                return init

            return noting

        patches.wrap(FSDPParamGroup, "__init__", noted(groups))
        patches.wrap(FullyShardedDataParallel, "__init__", noted(hidden))
        patches.wrap_everywhere(dist, {"destroy_process_group": lambda _: lambda *group: ended.append(group)})
        try:
            yield hidden
        finally:
            patches.undo()
            for group in ended:
                with contextlib.suppress(Exception):  # the processes may end before
                    dist.destroy_process_group(*group)
