"""Training and evaluation mode of a model, also of classes that use the name `train` for something else."""

import inspect

from torch import nn


def set_mode(module: nn.Module, training: bool) -> None:
    """Like `module.train(training)`. A class's own `train(mode)` is called; a `train(x, y)` that trains is not."""
    if type(module).train is not nn.Module.train and _takes_mode(module):
        module.train(training)
        return
    module.training = training
    for child in module.children():
        set_mode(child, training)


def _takes_mode(module: nn.Module) -> bool:
    """Whether a class's own `train` extends torch's: its argument is a mode, not data."""
    try:
        parameters = list(inspect.signature(module.train).parameters.values())
    except (TypeError, ValueError):
        return False
    optional = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if not parameters or any(p.default is p.empty and p.kind not in optional for p in parameters[1:]):
        return False
    first = parameters[0]
    return first.name == "mode" or isinstance(first.default, bool) or first.kind is first.VAR_POSITIONAL
