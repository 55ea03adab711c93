"""For a script that several processes run: its process groups are kept alive until it has been measured."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist

from gradcheck.instrument.patches import Patches
from gradcheck.rank import launched
from gradcheck.workload.sharding import noting_shards


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
