"""What the user names, before anything is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class TargetSpec:
    """Words from the command line or the configuration; `gradcheck.loading.load.load` makes a Workload of them."""

    target: str  # "model.py", "model.py:name", "package.module:name"
    arguments: Mapping[str, str] = field(default_factory=dict)  # keyword arguments of the model's class or factory
    data: str | None = None  # a data file, an image folder, "FILE.py:attribute" or "module:attribute"
    val_data: str | None = None
    inputs: tuple[str, ...] = ()  # "float32[32,3,224,224]", "int64<1000>[4,128]", "name=int64[4,128]"
    loss: str | None = None  # a name such as "cross_entropy", or "FILE.py:attribute"
    optimizer: str | None = None  # a name such as "adamw", or "FILE.py:attribute"
    lr: float | None = None
    seed: int = 0
    device: str = "auto"
    dtype: str | None = None
    init_only: bool = False  # the model is built on the meta device, and nothing runs
    batches: int = 32  # at most so many different batches are collected
