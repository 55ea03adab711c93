"""What the optimizer does at every step besides its own: a proximal step after it, adaptive clipping before it."""

import ast

from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Unwritable
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import argument, called
from gradcheck.remedies.editing.statements import insert_definition
from gradcheck.remedies.optimizer.write_settings import created, with_name
from gradcheck.types.fix import Fix

SHRINK, CLIP = "shrink_weights", "AdaptiveClipping"


def _define(context: Context, name: str, code: str) -> None:
    """Before the top-level statement that makes the optimizer."""
    draft, call = created(context)
    if any(isinstance(n, (ast.FunctionDef, ast.ClassDef)) and n.name == name for n in draft.tree.body):
        raise Unwritable("the source has it already")
    insert_definition(draft, call, code)


def _spelled(context: Context, *names: str) -> list[str]:
    """Names of torch as the file that makes the optimizer spells them."""
    return [spelled(created(context)[0], name) for name in names]


# ------------------------------------------------------------------------------ L1, Elastic Net


def proximal(p: Fix, context: Context) -> None:
    """Soft thresholding after each step."""
    code = _shrinking(context, number(p, "l1"), number(p, "l2", 0.0))
    with_name(context, f"{{0}}.register_step_post_hook({SHRINK})")
    _define(context, SHRINK, code)


def _shrinking(context: Context, l1: float, l2: float) -> str:
    kind, no_grad = _spelled(context, "torch.optim.Optimizer", "torch.no_grad")
    optimizer = context.measurement.optimizer.name
    if optimizer.startswith(("Adam", "NAdam", "RAdam")):
        rate = (
            "state = optimizer.state[p]\n"
            '                second = state["exp_avg_sq"] / (1 - group["betas"][1] ** float(state["step"]))\n'
            '                rate = group["lr"] / (second.sqrt() + group["eps"])'
        )
    elif optimizer == "SGD":
        rate = 'rate = group["lr"] * (1 - group["dampening"]) / (1 - group["momentum"])'
    else:
        raise Unwritable(f"no proximal step is known for {optimizer}")
    divisor = f" / (1 + rate * {literal(l2, 2)})" if l2 else ""
    penalty = f"{literal(l1, 2)} * ||w||_1" + (f" + {literal(l2, 2)} / 2 * ||w||^2" if l2 else "")
    return f'''
@{no_grad}()
def {SHRINK}(optimizer: {kind}, *_: object) -> None:
    """The proximal step of the penalty {penalty} on weight matrices; small weights become exactly 0."""
    for group in optimizer.param_groups:
        for p in group["params"]:
            if p.ndim >= 2 and p.grad is not None:
                {rate}
                p.copy_(p.sign() * (p.abs() - rate * {literal(l1, 2)}).clamp_min(0){divisor})
'''


# ---------------------------------------------------------------------------- adaptive clipping


def adaptive(p: Fix, context: Context) -> None:
    """Brock et al. 2021, before each step; the output layer is left out by its name."""
    if context.measurement.clip is not None:
        raise Unwritable("the training clips already, in another way")
    share, spared = literal(number(p, "clipping")), _spared(context, word(p, "exempt"))
    code = _clipping(context)
    with_name(context, f"{{0}}.register_step_pre_hook({CLIP}({share}{spared}))")
    _define(context, CLIP, code)


def _spared(context: Context, exempt: str) -> str:
    """The parameters that are left alone, as an argument: by the names of their layers in the model that the optimizer is given."""
    owners = {name.rpartition(".")[0] for name in exempt.split(",") if name}
    if not owners:
        return ""
    draft, call = created(context)
    given = call.args[0] if call.args else argument(call, "params")
    if not (isinstance(given, ast.Call) and called(given) == "parameters" and isinstance(given.func, ast.Attribute)):
        raise Unwritable(f"{draft.path}:{call.lineno}: the optimizer is not given the parameters of one module")
    model = draft.source(given.func.value)
    paths = (context.name_now(owner) for owner in sorted(owners))
    listed = ", ".join(f'*{model}.get_submodule("{path}").parameters()' for path in paths)
    return f", [{listed}]"


def _clipping(context: Context) -> str:
    kind, parameter, no_grad = _spelled(context, "torch.optim.Optimizer", "torch.nn.Parameter", "torch.no_grad")
    (norm,) = _spelled(context, "torch.linalg.vector_norm")
    return f'''
class {CLIP}:
    """Adaptive gradient clipping (Brock et al. 2021): each unit's gradient at a share of the norm of its weights."""

    def __init__(self, share: float, spared: list[{parameter}] | tuple[()] = ()) -> None:
        self.share, self.spared = share, spared

    @{no_grad}()
    def __call__(self, optimizer: {kind}, *_: object) -> None:
        for p in (p for group in optimizer.param_groups for p in group["params"]):
            if p.grad is None or any(p is other for other in self.spared):
                continue
            unit = tuple(range(1, p.ndim)) or None
            largest = self.share * {norm}(p, dim=unit, keepdim=True).clamp_min(1e-3)
            p.grad.mul_((largest / {norm}(p.grad, dim=unit, keepdim=True).clamp_min(1e-12)).clamp_max(1.0))
'''


WRITERS: dict[str, Writer] = {"l1": proximal, "elastic-net": proximal, "adaptive-gradient-clipping": adaptive}
