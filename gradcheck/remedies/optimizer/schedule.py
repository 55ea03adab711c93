"""Treatments of the rate over time: warm-up, cosine, steps."""

import ast
from functools import partial

from gradcheck.remedies.definition import optimizing
from gradcheck.remedies.editing.context import Context, Writer, literal, number
from gradcheck.remedies.editing.draft import Draft
from gradcheck.remedies.editing.loop import Loop, loops, steps
from gradcheck.remedies.editing.names import spelled
from gradcheck.remedies.editing.nodes import bindings, called, calls_in, closed, every, function_of, names_in, own, scope_of, set_argument
from gradcheck.remedies.editing.statements import insert_after
from gradcheck.remedies.modules.hooks import RateSchedule, cosine, staircase, warming_up
from gradcheck.remedies.optimizer.write_settings import created, named, with_name
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix, Setting
from gradcheck.types.measurement import Measurement
from gradcheck.workload.treated import TreatedWorkload

FEWEST_WARM, WARM_PASSES, WARM_START = 200, 10, 0.01


@optimizing(
    "warm-up",
    "learning-rate warm-up",
    "Goyal et al. 2017, Accurate, Large Minibatch SGD; Ma and Yarats 2021, On the adequacy of untuned warmup",
    wording="raise the rate from {start:.0%} of its value to all of it over the first {steps} steps",
)
def warm_up(finding: Finding | None, m: Measurement) -> list[Fix]:
    """2 / (1 - beta2) steps (Ma and Yarats 2021), and no more than ten passes over the data, unless these are very short."""
    beta = m.optimizer.betas[1] if len(m.optimizer.betas) > 1 and m.optimizer.betas[1] < 1 else 0.999
    steps = min(round(2 / (1 - beta)), max(FEWEST_WARM, WARM_PASSES * m.data.batches))
    return [warm_up.with_settings(finding, steps=steps, start=WARM_START)] if m.optimizer.lr else []


@warm_up.applies
def apply_warm_up(treated: TreatedWorkload, p: Fix) -> None:
    RateSchedule(partial(warming_up, int(p.settings["steps"]), float(p.settings.get("start", WARM_START)))).attach(treated.optimizer)


@optimizing("cosine-schedule", "cosine schedule", "Loshchilov and Hutter 2017, SGDR: Stochastic Gradient Descent with Warm Restarts")
def cosine_schedule(finding: Finding | None, m: Measurement) -> list[Fix]:
    settings: dict[str, Setting] = {"steps": m.steps}
    return [cosine_schedule.fix("let the rate fall to 0 along half a cosine over the training", finding, settings=settings)]


@cosine_schedule.applies
def anneal(treated: TreatedWorkload, p: Fix) -> None:
    RateSchedule(partial(cosine, int(p.settings["steps"]))).attach(treated.optimizer)


@optimizing("step-schedule", "step schedule", "He et al. 2016, Deep Residual Learning for Image Recognition, section 3.4")
def step_schedule(finding: Finding | None, m: Measurement) -> list[Fix]:
    settings: dict[str, Setting] = {"steps": max(1, m.steps // 3), "factor": 0.1}
    return [step_schedule.fix("divide the rate by 10 after each third of the training", finding, settings=settings)]


@step_schedule.applies
def descend_stairs(treated: TreatedWorkload, p: Fix) -> None:
    RateSchedule(partial(staircase, int(p.settings["steps"]), float(p.settings["factor"]))).attach(treated.optimizer)


REMEDIES = (warm_up, cosine_schedule, step_schedule)


THIRDS = 3  # parts of a training with a rate that falls by steps


def write_warm_up(p: Fix, context: Context) -> None:
    """A LinearLR that the loop steps; one that is there already starts lower."""
    start = literal(number(p, "start", 0.01))
    if _warmer(context, start):
        return
    _scheduled(context, "LinearLR", f"start_factor={start}, total_iters={round(number(p, 'steps'))}", "warm_up", None)


def _warmer(context: Context, start: str) -> bool:
    """A LinearLR of the source begins at another share of the rate."""
    for draft, call in context.calls("LinearLR"):
        set_argument(draft, call, "start_factor", start, 1)
        return True
    return False


def write_cosine(p: Fix, context: Context) -> None:
    """CosineAnnealingLR over the whole training."""
    length, outer = _length(context)
    _scheduled(context, "CosineAnnealingLR", f"T_max={length or round(number(p, 'steps'))}", "schedule", outer)


def write_staircase(p: Fix, context: Context) -> None:
    """StepLR, with a step after each third of the training."""
    length, outer = _length(context)
    third = round(number(p, "steps"))
    size = f"max(1, {length} // {THIRDS})" if length else f"{third}"
    if length.isdigit():
        size = str(max(1, int(length) // THIRDS))
    _scheduled(context, "StepLR", f"step_size={size}, gamma={literal(number(p, 'factor', 0.1))}", "schedule", outer)


def _length(context: Context) -> tuple[str, Loop | None]:
    """How often the outermost loop around the step runs, as it is written there, and that loop; ("", None) without a loop.

    Raises Unwritable where the loop does not say it, or the source has a schedule.
    """
    for draft in context.all_drafts():
        for node in every(draft.tree, ast.Call):
            if called(node).endswith(("LR", "WarmRestarts")):
                raise draft.refusal(node, "the source has a schedule of its own")
    found = next(iter(steps(context)), None)
    if found is None:
        return "", None
    draft, step = found
    around = loops(draft, step)
    outer = around[-1] if around else None
    counted = next(iter(calls_in(outer.iter, "range")), None) if isinstance(outer, ast.For) else None
    if counted is None or len(counted.args) != 1:
        raise draft.refusal(step, "the loop does not say how long the training is")
    if not _known(context, draft, counted.args[0]):
        raise draft.refusal(step, "the length of the training is not known where the optimizer is made")
    return closed(draft, counted.args[0]), outer


def _known(context: Context, draft: Draft, length: ast.expr) -> bool:
    """Every name in it has its value where the optimizer is made: given in the module, or in the same function, before."""
    home, call = created(context)
    function = function_of(draft, call) if home is draft else None
    given = {a.arg for a in (*function.args.args, *function.args.kwonlyargs)} if function is not None else set()
    for scope in (draft.tree, scope_of(draft, call)) if home is draft else ():
        given |= {name for node in own(scope) if getattr(node, "lineno", 0) < call.lineno for name, _ in bindings(node)}
    return names_in(length) <= given


def _scheduled(context: Context, kind: str, arguments: str, name: str, epochs: Loop | None) -> None:
    """A schedule after the optimizer's creation; stepped at the end of the loop over epochs, else after each step of the optimizer."""
    draft, call = created(context)
    schedule = spelled(draft, f"torch.optim.lr_scheduler.{kind}")
    owner = named(draft, call)
    inside = next(iter(steps(context)), None)
    if owner is None or inside is None or inside[0] is not draft:
        with_name(context, f"{schedule}({{0}}, {arguments})  # stepped by the training loop")
        return
    own = ".".join([*owner.split(".")[:-1], name])
    insert_after(draft, _stepped(draft, inside[1], epochs), f"{own}.step()")
    with_name(context, f"{own} = {schedule}({{0}}, {arguments})")


def _stepped(draft: Draft, step: ast.Call, epochs: Loop | None) -> ast.AST:
    """The statement after which the schedule steps: the last one of an epoch, or the optimizer's step."""
    around = loops(draft, step)
    return around[-1].body[-1] if epochs is not None and len(around) > 1 else step


WRITERS: dict[str, Writer] = {"warm-up": write_warm_up, "cosine-schedule": write_cosine, "step-schedule": write_staircase}
