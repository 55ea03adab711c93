"""Processes beside the script's own: those that it starts, whose work is not seen, and those that run it, whose groups are kept alive."""

import contextlib
import multiprocessing.process
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch.distributed as dist

from gradcheck.instrument.patches import Patches
from gradcheck.rank import launched
from gradcheck.workload.sharding import noting_shards


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

    patches.wrap(subprocess.Popen, "__init__", of_command)
    patches.wrap(multiprocessing.process.BaseProcess, "start", of_function)


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
        patches.wrap_everywhere(dist, {"destroy_process_group": lambda destroy: lambda *group: ended.append(group)})
        try:
            yield hidden
        finally:
            patches.undo()
            for group in ended:
                with contextlib.suppress(Exception):  # the processes may end before
                    dist.destroy_process_group(*group)
