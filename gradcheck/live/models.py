"""What must be known of models and optimizers before they are watched."""

import gc
import sys
from typing import TypeVar

from torch import nn
from torch.optim import Optimizer

from gradcheck.instrument.running_code import is_wrapper

T = TypeVar("T")
FEW = 30  # classes: who refers to so few, as their objects do, is found sooner than by asking all (measured: 37 and 70 ms of 16)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module behind DistributedDataParallel, DataParallel and the like. A compiled module is what was compiled."""
    while is_wrapper(model):
        inner = model._modules.get("module") or model._modules.get("_orig_mod")
        if inner is None:
            return model
        model = inner
    return model


def compiled_parts(model: nn.Module) -> list[str]:
    """Names of the layers that were compiled, "" for the whole model: a hook inside them would make torch compile them again. None
    of them where TORCH_COMPILE_DISABLE=1 lets them run as they are."""
    if getattr(sys.modules.get("torch._dynamo.config"), "disable", False):
        return []
    compiled = {id(x._modules.get("_orig_mod")) for x in compiled_modules()}
    found = [n for n, m in model.named_modules() if id(m) in compiled or m._compiled_call_impl is not None]
    return list(dict.fromkeys(".".join(part for part in name.split(".") if part != "_orig_mod") for name in found))


def compiled_modules() -> list[nn.Module]:
    """What torch.compile has made of modules, in the whole process."""
    kind = getattr(sys.modules.get("torch._dynamo.eval_frame"), "OptimizedModule", None)
    return [x for x in gc.get_referrers(kind) if type(x) is kind] if kind is not None else []  # an object refers to its class


def living_modules() -> list[nn.Module]:
    """All modules of the process."""
    return [x for x in _living(nn.Module) if "_parameters" in vars(x)]


def living_optimizers() -> list[Optimizer]:
    """All optimizers of the process."""
    return [x for x in _living(Optimizer) if hasattr(x, "param_groups")]


def _living(kind: type[T]) -> list[T]:
    """All objects of a kind. Their types are compared: some objects of torch warn when they are looked at."""
    kinds: dict[int, type[T]] = {id(kind): kind}
    pending = [kind]
    while pending:
        new = [k for k in type.__subclasses__(pending.pop()) if id(k) not in kinds]
        kinds |= {id(k): k for k in new}
        pending += new
    objects = gc.get_referrers(*kinds.values()) if len(kinds) <= FEW else gc.get_objects()
    return [x for x in objects if id(type(x)) in kinds]
