"""What is asked of models and optimizers before they are watched."""

from __future__ import annotations

import gc
import sys

from torch import nn
from torch.optim import Optimizer

from gradcheck.instrument.running_code import is_wrapper


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind DistributedDataParallel, DataParallel and the like. A compiled module is what was compiled."""
    while is_wrapper(model):
        inner = model._modules.get("module") or model._modules.get("_orig_mod")
        if inner is None:
            return model
        model = inner
    return model


def is_compiled(model: nn.Module) -> bool:
    """Whether the model, or something in it, was compiled: a hook inside it would make torch compile it again."""
    inner = {id(m) for m in model.modules()}
    if any(type(m).__name__ == "OptimizedModule" or m._compiled_call_impl is not None for m in model.modules()):
        return True
    frames = sys.modules.get("torch._dynamo.eval_frame")
    kind = getattr(frames, "OptimizedModule", None)
    if kind is None:
        return False
    return any(type(x) is kind and id(x._modules.get("_orig_mod")) in inner for x in gc.get_objects())


def living_modules() -> list[nn.Module]:
    """All modules of the process."""
    return [x for x in gc.get_objects() if issubclass(type(x), nn.Module) and "_parameters" in vars(x)]


def living_optimizers() -> list[Optimizer]:
    """All optimizers of the process. Types are asked, not objects: some objects of torch warn when they are looked at."""
    return [x for x in gc.get_objects() if issubclass(type(x), Optimizer) and hasattr(x, "param_groups")]
