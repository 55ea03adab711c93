"""Treatments of the gradient between backward pass and step: clipping by norm, by value, and adaptive to each unit."""

import ast
import math

from gradcheck.analysis.convergence import training_outcome
from gradcheck.analysis.statistics import percentile
from gradcheck.loading.optimizers import BY_NORM, BY_VALUE
from gradcheck.remedies.definition import Strength, clipping
from gradcheck.remedies.editing.context import Context, Writer, literal, number, word
from gradcheck.remedies.editing.draft import Draft, Edit, Unwritable
from gradcheck.remedies.editing.loop import CLIPPING, parameters, stepped, steps
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import argument, called, calls_in, every, set_argument, set_value, statement_of
from gradcheck.remedies.editing.statements import block_of, insert_before, line_start
from gradcheck.remedies.modules.surgery import path_now
from gradcheck.remedies.optimizer.write_settings import created, define, spelled_there, with_name
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload
from gradcheck.workload.workload import Clipping

SETTLED = 20  # steps before which norms are not counted: the first ones are up to ten times larger in healthy trainings
SHARE = 0.9  # percentile that a threshold is taken from: Deep Learning Tuning Playbook
LARGEST_STEP = 0.02  # of the weights' norm: update ratio that suits most nets (calibration E3)
USUAL_NORM, USUAL_SHARE = 1.0, 0.01


def norm_threshold(m: Measurement) -> float:
    """The 90th percentile of the settled gradient norms.

    In a training that diverges they are symptoms: then at most the norm whose step moves the weights by 2 %.
    """
    finite = [n for n in m.probe.gradient_norms if math.isfinite(n)]
    usual = percentile(finite[SETTLED:] or finite, SHARE) if finite else USUAL_NORM
    weights = math.sqrt(sum(p.steps[0].norm ** 2 for p in m.parameters if p.trainable and p.steps and math.isfinite(p.steps[0].norm)))
    o = m.optimizer
    if training_outcome(m) == "diverges" and not o.adaptive and o.lr > 0 and weights > 0:
        usual = min(usual, LARGEST_STEP * weights * (1 - min(o.momentum, 0.99)) / o.lr)
    return float(f"{usual:.2g}") if usual > 0 else USUAL_NORM


@clipping(
    "clip-gradient-norm",
    "gradient clipping by norm",
    "Pascanu et al. 2013, On the difficulty of training recurrent neural networks; Seetharaman et al. 2020, AutoClip",
    strengths=(Strength("max_norm", USUAL_NORM, 1e-2, 1e2),),
    wording="clip the gradient's norm at {max_norm:.3g}, between backward and step",
)
def clip_gradient_norm(finding: Finding | None, m: Measurement) -> list[Fix]:
    return [clip_gradient_norm.with_settings(finding, max_norm=norm_threshold(m))]


@clip_gradient_norm.applies
def clip_norm(treated: TreatedWorkload, p: Fix) -> None:
    treated.workload.clip = Clipping("norm", float(p.settings["max_norm"]))


@clipping(
    "clip-gradient-value",
    "gradient clipping by value",
    "Zhang et al. 2020, Why are Adaptive Methods Good for Attention Models?",
    strengths=(Strength("clip_value", 0.1, 1e-4, 10.0),),
    wording="clip each entry of the gradient at {clip_value:.3g}",
)
def clip_gradient_value(finding: Finding | None, m: Measurement) -> list[Fix]:
    """The 90th percentile of the largest entries: those of single parameters at single steps."""
    largest = [s.gradient_max for p in m.parameters for s in p.steps if s.gradient_max and math.isfinite(s.gradient_max)]
    return [clip_gradient_value.with_settings(finding, clip_value=float(f"{percentile(largest, SHARE):.2g}") if largest else USUAL_NORM)]


@clip_gradient_value.applies
def clip_value(treated: TreatedWorkload, p: Fix) -> None:
    treated.workload.clip = Clipping("value", float(p.settings["clip_value"]))


@clipping(
    "adaptive-gradient-clipping",
    "adaptive gradient clipping",
    "Brock et al. 2021, High-Performance Large-Scale Image Recognition Without Normalization",
    strengths=(Strength("clipping", USUAL_SHARE, 1e-3, 0.3),),
    wording="clip each unit's gradient at {clipping:.3g} of the norm of its weights, the output layer left out",
)
def adaptive_gradient_clipping(finding: Finding | None, m: Measurement) -> list[Fix]:
    heads = [name for layer in m.layers if layer.head for name in layer.parameters]
    return [adaptive_gradient_clipping.with_settings(finding, clipping=USUAL_SHARE, exempt=",".join(heads))]


@adaptive_gradient_clipping.applies
def clip_adaptively(treated: TreatedWorkload, p: Fix) -> None:
    exempt = tuple(path_now(treated, name) for name in str(p.settings.get("exempt", "")).split(",") if name)
    treated.workload.clip = Clipping("adaptive", float(p.settings["clipping"]), exempt=exempt)


REMEDIES = (clip_gradient_norm, clip_gradient_value, adaptive_gradient_clipping)


def by_norm(p: Fix, context: Context) -> None:
    _clip(context, "clip_grad_norm_", "max_norm", number(p, "max_norm"), "max_grad_norm")


def by_value(p: Fix, context: Context) -> None:
    _clip(context, "clip_grad_value_", "clip_value", number(p, "clip_value"), "clip_grad_value")


def _clip(context: Context, function: str, parameter: str, threshold: float, name: str) -> None:
    text = literal(threshold)
    if _existing_call(context, function, parameter, text) or (context.measurement.loop is None and _existing_number(context, name, text)):
        return
    if context.measurement.loop is None:
        _new_number(context, name, text)
        text = name
    loops = list(steps(context))
    if not loops and context.measurement.loop is not None:
        raise Unwritable("there is no training loop in your files")
    for draft, step in loops:
        _before_step(draft, step, function, text)


def _existing_call(context: Context, function: str, parameter: str, text: str) -> bool:
    """A loop that clips already gets the new threshold, and the new kind."""
    clip = context.measurement.clip
    if clip is None or clip.site is None:
        return False
    try:
        draft, node = context.at(clip.site)
    except Unwritable:  # an assignment, not a call
        return False
    if not isinstance(node, ast.Call) or called(node) not in CLIPPING:
        return False
    if called(node) != function:
        if len(node.args) != 2:
            raise draft.refusal(node, "the call is not of the usual form")
        set_value(draft, node.args[1], text)
        draft.replace(node.func, draft.source(node.func).removesuffix(called(node)) + function)
        return True
    set_argument(draft, node, parameter, text, 1)
    return True


def _existing_number(context: Context, name: str, text: str) -> bool:
    """A file that has the customary number, or None in its place, gets the new one."""
    for draft in context.all_drafts():
        for node in draft.tree.body:
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target if isinstance(node, ast.AnnAssign) else None
            if not isinstance(target, ast.Name) or target.id.lower() not in (*BY_NORM, *BY_VALUE):
                continue
            assert isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
            same = target.id.lower() in (BY_NORM if name == "max_grad_norm" else BY_VALUE)
            draft.replace(node.value, text)
            if not same:
                _rename(draft, target.id, name.upper() if target.id.isupper() else name)
            return True
    return False


def _rename(draft: Draft, old: str, new: str) -> None:
    """The number's name, wherever it is read, and in the comment right above it."""
    named = [n for n in every(draft.tree, ast.Name) if n.id == old]
    draft.edit([Edit(*draft.span(n), new) for n in named])
    end = line_start(draft.text, draft.span(named[0])[0])
    start = line_start(draft.text, max(0, end - 1))
    comment = draft.text[start:end]
    if comment.lstrip().startswith("#"):
        kinds = CLIPPING[::-1] if new.lower() in BY_NORM else CLIPPING
        draft.edit([Edit(start, end, comment.replace(*kinds).replace(old, new))])


def _new_number(context: Context, name: str, text: str) -> None:
    """Before what makes the optimizer, or the model, at the top level."""
    place = context.measurement.optimizer.site or context.root
    draft, node = context.at(place, "the optimizer")
    top = next((a for a in (node, *draft.ancestors(node)) if isinstance(draft.parent(a), ast.Module)), None)
    if top is None:
        raise Unwritable("there is no place for the number")
    comment = f"# The training loop clips with it between backward and step.\n{name} = {text}\n"
    definition = isinstance(top, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
    insert_before(draft, top, f"{comment}\n\n" if definition else f"{comment}")


def _before_step(draft: Draft, step: ast.Call, function: str, text: str) -> None:
    optimizer, scaler = stepped(step)
    block = block_of(draft, statement_of(draft, step))
    if any(calls_in(one, *CLIPPING) for one in block):
        raise draft.refusal(step, "the loop clips already")
    lines = [f"{spelled(draft, 'torch.nn.utils.' + function)}({parameters(draft, step, optimizer)}, {text})"]
    if scaler is not None and scaler != optimizer and not any(calls_in(one, "unscale_") for one in block):
        lines.insert(0, f"{scaler}.unscale_({optimizer})")
    insert_before(draft, step, "\n".join(lines))


CLASS = "AdaptiveClipping"


def adaptive(p: Fix, context: Context) -> None:
    """Brock et al. 2021, before each step; the output layer is left out by its name."""
    if context.measurement.clip is not None:
        raise Unwritable("the training clips already, in another way")
    share, spared = literal(number(p, "clipping")), _spared(context, word(p, "exempt"))
    code = _clipping(context)
    with_name(context, f"{{0}}.register_step_pre_hook({CLASS}({share}{spared}))")
    define(context, CLASS, code)


def _spared(context: Context, exempt: str) -> str:
    """The parameters that are left alone, as an argument: by the names of their layers in the model that the optimizer is given."""
    owners = {name.rpartition(".")[0] for name in exempt.split(",") if name}
    if not owners:
        return ""
    draft, call = created(context)
    given = call.args[0] if call.args else argument(call, "params")
    if not (isinstance(given, ast.Call) and called(given) == "parameters" and isinstance(given.func, ast.Attribute)):
        raise draft.refusal(call, "the optimizer is not given the parameters of one module")
    model = draft.source(given.func.value)
    paths = (context.name_now(owner) for owner in sorted(owners))
    listed = ", ".join(f'*{model}.get_submodule("{path}").parameters()' for path in paths)
    return f", [{listed}]"


def _clipping(context: Context) -> str:
    kind, parameter, no_grad = spelled_there(context, "torch.optim.Optimizer", "torch.nn.Parameter", "torch.no_grad")
    (norm,) = spelled_there(context, "torch.linalg.vector_norm")
    return f'''
class {CLASS}:
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


WRITERS: dict[str, Writer] = {"clip-gradient-norm": by_norm, "clip-gradient-value": by_value, "adaptive-gradient-clipping": adaptive}
