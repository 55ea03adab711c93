"""Gradients of functions, `torch.func.grad` and `grad_and_value`: taken by autograd instead, which records what it is asked for."""

from collections.abc import Callable
from typing import Any

import torch
from torch.utils import _pytree as pytree

from gradcheck.capture.passes import leaves
from gradcheck.capture.recording import Recording

Transform = Callable[..., Callable[..., Any]]


class Functional:
    def __init__(self, recording: Recording) -> None:
        self.recording = recording

    def wrappers(self) -> tuple[tuple[str, Callable[[Transform], Transform]], ...]:
        """The wrappers, by the name of the function of torch.func that each wraps."""
        return ("grad", lambda original: self._wrapper(original, False)), ("grad_and_value", lambda original: self._wrapper(original, True))

    def _wrapper(self, original: Transform, with_value: bool) -> Transform:
        def transform(func: Callable[..., Any], argnums: Any = 0, has_aux: bool = False) -> Callable[..., Any]:
            transformed = original(func, argnums, has_aux)

            def call(*args: Any, **kwargs: Any) -> Any:
                if self.recording.busy or not isinstance(argnums, int) or not _are_weights(args[argnums : argnums + 1]):
                    return transformed(*args, **kwargs)
                taken = self._gradient(func, argnums, has_aux, args, kwargs)
                if taken is None:
                    return transformed(*args, **kwargs)
                gradient, value, aux = taken
                if with_value:
                    return gradient, (value, aux) if has_aux else value
                return (gradient, aux) if has_aux else gradient

            return call

        return transform

    def _gradient(self, func: Callable[..., Any], number: int, has_aux: bool, args: Any, kwargs: Any) -> tuple[Any, Any, Any] | None:
        """Gradient, value and auxiliary output; None if the value depends on more than these weights."""
        flat, shape = pytree.tree_flatten(args[number])
        weights = [t.detach().requires_grad_() for t in flat]
        given = (*args[:number], pytree.tree_unflatten(weights, shape), *args[number + 1 :])
        with torch.enable_grad():
            output = func(*given, **kwargs)
            value, aux = output if has_aux else (output, None)
            if not isinstance(value, torch.Tensor) or not leaves(value).keys() <= set(map(id, weights)):
                return None
            gradients = torch.autograd.grad(value, weights, materialize_grads=True)
        aux = pytree.tree_map_only(torch.Tensor, torch.Tensor.detach, aux)
        return pytree.tree_unflatten(list(gradients), shape), value.detach(), aux


def _are_weights(value: Any) -> bool:
    """Whether an argument is a collection of tensors outside of all transforms, and no gradient is to flow through it."""
    tensors = pytree.tree_leaves(value) if value and isinstance(value[0], (dict, list, tuple)) else []
    plain = all(isinstance(t, torch.Tensor) and t.is_floating_point() and not t.requires_grad for t in tensors)
    return bool(tensors) and plain and torch._C._functorch.peek_interpreter_stack() is None
