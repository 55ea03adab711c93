"""A model built on the meta device, for `--init-only`: its structure and how its parameters are drawn, without any numbers."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import nn

from gradcheck.errors import TargetError
from gradcheck.instrument.initializers import Initializers
from gradcheck.loading.importing import session, split_reference
from gradcheck.loading.load import optimizer_of
from gradcheck.loading.models import find_model, unwrapped
from gradcheck.loading.no_training import no_training
from gradcheck.loading.spec import TargetSpec
from gradcheck.types.measurement import Assumption
from gradcheck.workload.device import choose_dtype


@dataclass(frozen=True)
class Outline:
    """`model` and the parameters of `optimizer` have shapes but no numbers; `draws` says how these would be drawn."""

    name: str
    model: nn.Module
    optimizer: torch.optim.Optimizer
    optimizer_given: bool
    draws: Initializers
    said: tuple[Assumption, ...]
    files: tuple[str, ...]


def outline(spec: TargetSpec) -> Outline:
    """Raises TargetError if the file needs numbers to build its model."""
    home, name = split_reference(spec.target)
    draws = Initializers()
    with session(spec.seed) as current:
        try:
            with torch.device("meta"), draws:
                with nullcontext() if name else no_training(home):
                    module = current.open(home)
                found = find_model(module, home, name, spec.arguments, spec.seed)
                model, wrappers = unwrapped(found.model)
                maker, given = optimizer_of(spec, current, module, found, model, home)
                if spec.dtype is not None:
                    model.to(choose_dtype(spec.dtype))
                optimizer, said = maker(model)
        except TargetError as error:
            if "meta" not in error.message.lower():
                raise
            hint = "--init-only builds the model on torch's meta device: name a function that builds it from its configuration alone"
            raise TargetError(error.message, location=error.location, hint=hint) from error
        files = tuple(current.files)
    if not any(p.requires_grad for p in model.parameters()):
        raise TargetError(f"the model ({type(model).__name__}) has no trainable parameters", hint="set requires_grad on what is trained")
    return Outline(spec.target, model, optimizer, given, draws, (found.said, *wrappers, said), files)
