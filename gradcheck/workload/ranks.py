"""The processes of a distributed training, and what passes between them: a gather at a measured step, a last message at the end. A rank may
come late, take fewer steps, raise, or not be watched at all. None of that may hang the others, so no rank enters a collective before all
have said in the store that they are there. A rank that has waited too long decides for all that there will be none, by a value in the store
that only the first writer sets. From then on each rank is on its own, and rank 0 says why.
The user's process groups are not used: gradcheck has one of its own, with gloo, for tensors on the CPU.
"""

import contextlib
import pickle
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from gradcheck.rank import launched

PATIENCE = 30.0  # seconds that a rank waits for the others at a measured step
LONGEST = timedelta(hours=2)  # that the others wait for rank 0 to measure a model that each of them holds in full
SOON = 1.0  # seconds of waiting after which a rank says for what
LAST_WORDS = 5.0  # seconds that rank 0 waits at the end for the last messages of the others
_FIRST_PAUSE, _LONGEST_PAUSE = 0.0002, 0.02  # seconds between two looks into the store
_NOT_STARTED = "torch.distributed was not initialised"

_meetings: dict[str, int] = {}  # the last run of each kind that this process came to: each has its own keys in the store


class RankGroup:
    """One process among those that train together. Make it with `join`, at the same point of each process."""

    def __init__(self, rank: int, count: int, store: Any = None, why: str = "") -> None:
        self.rank, self.count = rank, count
        self.why = why  # nothing passes between the ranks (any more)
        self._store = store
        self._group: Any = None
        self._met = ""  # the last phase that all ranks were in
        self._agreed: list[str] = []  # keys of what rank 0 said at the last meetings
        self._left = False

    @property
    def leads(self) -> bool:
        """Whether this is the rank that reports."""
        return self.rank == 0

    @property
    def joined(self) -> bool:
        return self._group is not None and not self.why

    def _open(self, advice: str = "") -> None:
        """Makes the group, if all ranks come to be watched. `advice`: what to do about those that do not come at once."""
        try:
            if self._meet("start", advice):
                self._group = dist.new_group(backend="gloo", timeout=timedelta(seconds=2 * PATIENCE))
        except Exception as error:  # a store that is gone, a build without gloo
            self.give_up(f"{type(error).__name__}: {error}")

    def _meet(self, phase: str, advice: str = "") -> bool:
        """Waits until all ranks are in this phase. False, on all of them, when one does not come."""
        decided = f"{phase}/decided"
        if self._store.add(f"{phase}/present", 1) >= self.count:
            self._store.compare_set(decided, "", "yes")
        end = time.monotonic() + PATIENCE
        said = f"gradcheck: rank {self.rank} waits up to {PATIENCE:g} s for the other ranks, and then goes on without them: {advice}"
        self._wait(
            lambda: self._store.check([decided]), lambda: time.monotonic() > end or self._store.check(["over"]), said if advice else ""
        )
        if self._store.compare_set(decided, "", "no") == b"yes":
            if self.leads and self._met:  # no one is there any more
                self._store.delete_key(f"{self._met}/present")
                self._store.delete_key(f"{self._met}/decided")
            self._met = phase
            return True
        late = "" if self._store.check(["over"]) else f"not all of the {self.count} ranks came to the {phase} within {PATIENCE:g} s"
        self.give_up(late)
        return False

    @staticmethod
    def _wait(reached: Callable[[], bool], hopeless: Callable[[], bool], said: str = "") -> None:
        """`said`: on stderr, where it takes longer than ranks that come together are apart."""
        pause, soon = _FIRST_PAUSE, time.monotonic() + SOON
        while not reached() and not hopeless():
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)
            if said and time.monotonic() > soon:
                print(said, file=sys.stderr, flush=True)
                said = ""

    def gather(self, step: int, said: Any) -> list[Any] | None:
        """On rank 0, what all ranks say at this step; on the others, nothing. None on every rank if they did not come together."""
        if not self.joined:
            return None
        try:
            if not self._meet(f"step {step}"):
                return None
            heard: list[Any] | None = [None] * self.count if self.leads else None
            dist.gather_object(said, heard, dst=0, group=self._group)
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}")
            return None
        return heard or []

    def give_up(self, why: str) -> None:
        """From now on this rank is on its own; the others learn of it when they look. `why` is "": another one's reason."""
        with contextlib.suppress(Exception):
            first = self._store.compare_set("over", "", f"rank {self.rank}: {why}" if why else "another rank is no longer watched")
            why = first.decode()
        self.why = self.why or why

    def agree(self, number: int) -> int | None:
        """The number that rank 0 gave at the meeting before this one: no rank waits for it. None: there was none. Ask after a gather."""
        said = None
        try:
            if self._agreed:
                said = int(self._store.get(self._agreed[-1]))
            key = f"{self._met}/agreed"
            if self.leads:
                self._store.set(key, str(number))
                if len(self._agreed) > 1:  # all have read it: they are past it
                    self._store.delete_key(self._agreed[0])
            self._agreed = [*self._agreed[-1:], key]
        except Exception as error:
            self.give_up(f"{type(error).__name__}: {error}")
        return said

    # ------------------------------------------------------------- in lockstep

    def everyone(self, said: Any) -> list[Any]:
        """What all ranks say, on every rank. All call it at the same point; raises what gloo raises when one does not come."""
        heard: list[Any] = [None] * self.count
        dist.all_gather_object(heard, said, group=self._group)
        return heard

    def wait_for_lead(self) -> Any:
        """On the other ranks: what rank 0 leaves for them when it is done, however long that takes."""
        self._store.wait(["lead"], LONGEST)
        return pickle.loads(self._store.get("lead"))

    def leave_for_others(self, said: Any) -> None:
        """Rank 0 is done."""
        self._store.set("lead", pickle.dumps(said))

    def fail(self, why: str) -> None:
        """This rank raised an error: the others cannot go on without it."""
        with contextlib.suppress(Exception):
            self._store.compare_set("failed", "", f"rank {self.rank}: {why}")

    def failure(self) -> str:
        """Which rank raised what; "" if none is known to have raised."""
        with contextlib.suppress(Exception):
            if self._store.check(["failed"]):
                return self._store.get("failed").decode()
        return ""

    # ----------------------------------------------------------------- stopping

    def call_stop(self, finding: Any) -> None:
        """Rank 0: all ranks are to stop when they meet next."""
        with contextlib.suppress(Exception):
            self._store.set("stop", pickle.dumps((self._met, finding)))

    def called_stop(self) -> Any:
        """The finding to stop for, the same on all ranks; None to go on. Ask after a gather."""
        with contextlib.suppress(Exception):
            if self.joined and self._store.check(["stop"]):
                called_at, finding = pickle.loads(self._store.get("stop"))
                return finding if called_at != self._met else None  # one that has just been called is for the next meeting
        return None

    # ------------------------------------------------------------------ leaving

    def leave(self, last: Any) -> dict[int, Any]:
        """Ends this rank. Only rank 0 waits, for a moment, for the last messages of the others: rank -> message."""
        if self._left or self._store is None:
            return {}
        self._left = True
        heard: dict[int, Any] = {}
        with contextlib.suppress(Exception):
            was_joined = self.joined
            self._store.compare_set("over", "", f"rank {self.rank} has ended")
            if not self.leads:
                self._store.set(f"last/{self.rank}", pickle.dumps(last))
            elif self._group is not None:
                heard = self._last_words(LAST_WORDS if was_joined else 0.0)
        if self._group is not None:
            with contextlib.suppress(Exception):  # the program may have destroyed all groups
                dist.destroy_process_group(self._group)
            self._group = None
        return heard

    def _last_words(self, seconds: float) -> dict[int, Any]:
        others = {rank: f"last/{rank}" for rank in range(1, self.count)}
        end = time.monotonic() + seconds
        self._wait(lambda: self._store.check([*others.values()]), lambda: time.monotonic() > end)
        return {rank: pickle.loads(self._store.get(key)) for rank, key in others.items() if self._store.check([key])}


def join(run: str = "watch", *, alone: bool = False, advice: str = "") -> RankGroup | None:
    """The ranks of this training, once all have come; None for a single process. If ranks do not come, `why` says so.

    `run`: the kind of what they come for. `alone`: one process is a group, too. `advice`: printed by a rank that waits.
    """
    if dist.is_available() and dist.is_initialized():
        if dist.get_world_size() < 2 and not alone:
            return None
        from torch.distributed.distributed_c10d import PrefixStore, _get_default_store  # builds without it lack the names

        store = _get_default_store()
        _meetings[run] = number = _next_meeting(run, store)
        ranks = RankGroup(dist.get_rank(), dist.get_world_size(), PrefixStore(f"gradcheck/{run}/{number}", store))
        ranks._open(advice)
        return ranks
    rank, count = launched()
    return RankGroup(rank, count, why=_NOT_STARTED) if count > 1 else None


def _next_meeting(run: str, store: Any) -> int:
    """The first one that this process has not come to, and that others have not left already because it did not come."""
    number = _meetings.get(run, 0) + 1
    while store.check([f"gradcheck/{run}/{number}/over"]):
        number += 1
    return number
