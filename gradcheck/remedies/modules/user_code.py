"""Between the model's output and the user's loss: maps of the output, and changes of the loss's own code.

What changes a loss is a `functools.partial` around the one that the user gave, so that copies of a copy copy that one too. A training
step that computes its loss itself gets a model whose output is mapped.
"""

import copy
import functools
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from gradcheck.remedies.modules.rewriting import Edit, TreeEdit, bind, own_methods, rewrite, rewritten, transformed
from gradcheck.remedies.modules.surgery import require_running
from gradcheck.types.location import Location
from gradcheck.workload.step import apply_loss, as_scalar, make_user_step
from gradcheck.workload.treated import Inapplicable, TreatedWorkload, target_index
from gradcheck.workload.workload import Batch, TrainingStep

Map = Callable[[torch.Tensor, Any], torch.Tensor]  # (output, target) to the output that the loss sees; no target in a training step


def map_output(treated: TreatedWorkload, change: Map) -> None:
    """The loss sees `change(output, target)` in place of the output. `change` must be a function or a partial of one.

    Raises Inapplicable when the training step does not run with it, as for outputs that are not tensors.
    """
    w = treated.workload
    if w.loss is not None:
        treated.replace_loss(functools.partial(_loss_of_mapped, w.loss, change))
    else:
        w.training_step = functools.partial(_step_of_mapped, w.training_step, change)
    require_running(treated)


def _loss_of_mapped(loss: Any, change: Map, output: Any, target: Any) -> torch.Tensor:
    return as_scalar(apply_loss(loss, _mapped(change, output, target), target))


def _mapped(change: Map, output: Any, target: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return change(output, target)
    if isinstance(output, tuple) and output and isinstance(output[0], torch.Tensor) and not hasattr(output, "_fields"):
        return (change(output[0], target), *output[1:])
    raise Inapplicable(f"the model returns a {type(output).__name__}, not a tensor")


def _step_of_mapped(step: TrainingStep, change: Map, model: nn.Module, batch: Batch) -> torch.Tensor:
    return step(_MappedModel(model, change), batch)


class _MappedModel(nn.Module):
    """A model whose output is mapped; everything else about it is the model's."""

    def __init__(self, model: nn.Module, change: Map) -> None:
        super().__init__()
        self.model = model
        self.change = change

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return _mapped(self.change, self.model(*args, **kwargs), None)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("model"), name)

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        return self.model.named_parameters(*args, **kwargs)


def require_target(treated: TreatedWorkload) -> int:
    """Position of the target among the tensors of a batch. Raises Inapplicable where it is none of them."""
    index = target_index(treated.workload.batches[0], treated.model)
    if index is None:
        raise Inapplicable("the target is not a tensor of the batch")
    return index


# ---------------------------------------------------------------------------- code of the loss


def user_function(treated: TreatedWorkload) -> types.FunctionType | None:
    """The user's own function that the loss is computed by: the loss, or the training step; None where it is neither."""
    w = treated.workload
    candidate: Any = w.loss
    if candidate is None and isinstance(w.training_step, functools.partial) and w.training_step.args:
        candidate = w.training_step.args[0]
    return candidate if isinstance(candidate, types.FunctionType) else None


def edit_code(treated: TreatedWorkload, site: Location | None, edit: Edit) -> None:
    """Replaces an expression of the loss, the training step or the model, as an edit of the source would. Raises Inapplicable."""
    function = user_function(treated)
    if function is None or site is None:
        rewrite(treated, site, edit)
        return
    try:
        new = rewritten(function, site, edit)
    except Inapplicable:
        rewrite(treated, site, edit)
        return
    _use(treated, new)
    require_running(treated)


def edit_all_code(treated: TreatedWorkload, edit: TreeEdit) -> None:
    """Edits every function that the workload consists of: the loss or the training step, and the methods of the model's modules.

    `edit` gets a copy of a function's tree, and gives None for one that it leaves alone. Raises Inapplicable when it changes none.
    """
    function = user_function(treated)
    new = transformed(function, edit) if function is not None else None
    if new is not None:
        _use(treated, new)
    methods = [(method, tree) for method in own_methods(treated) if (tree := edit(copy.deepcopy(method.tree))) is not None]
    for method, tree in methods:
        bind(method, tree)
    if new is None and not methods:
        raise Inapplicable("the code of the loss, the training step and the model has no such place")
    require_running(treated)


def _use(treated: TreatedWorkload, function: Callable[..., Any]) -> None:
    """A changed loss or training step in place of the user's."""
    if treated.workload.loss is not None:
        treated.replace_loss(function)
    else:
        treated.workload.training_step = make_user_step(function)
