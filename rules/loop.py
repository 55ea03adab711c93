"""LOOP: the user's own training loop, seen when a script is run: steps, clipping, modes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from gradcheck.analysis.wording import BY_VALUE, layers_in_words, number, percent
from gradcheck.rules.graph_loop import NO_SCRIPT
from gradcheck.types.finding import Evidence, Finding, Remedy, Severity
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

if TYPE_CHECKING:
    from gradcheck.types.loop import LoopClip, LoopEvaluation, LoopFacts
    from gradcheck.types.measurement import Measurement


@rule(
    "LOOP001",
    "optimizer-never-steps",
    up_to="error",
    needs=("loop",),
    limits={"backwards": Limit(8, "backward passes", "heuristic: fewer may be one step of an accumulation")},
    explains=("OPT002", "LOSS005", "GRAPH003", "LOOP006"),
)
def optimizer_never_steps(m: Measurement, limits: Limits) -> Verdict:
    """Backward passes run, and no step ever follows: the parameters stay as they are.

    ## What it finds
    Training loops that call `backward()` and never the optimizer's `step()`.

    ## Why it matters
    Gradients are computed and thrown away. The loss only moves with the batches, and the model at the end is the one from the start.

    ## How it is measured
    The script is run, and the backward passes and the optimizers' steps are counted. A script that takes no step is stopped
    after 160 backward passes, or when it ends. Parameters are compared with what they were at the start: where something
    else changes them, the rule is silent.

    ## Limits and their sources
    At least `backwards` 8 backward passes without a step (heuristic): fewer may belong to a step that was yet to come.

    ## When to ignore it
    When the gradients themselves are the result, as in saliency maps or sensitivity studies.

    ## Example
    ```python
    optimizer.zero_grad()
    loss.backward()
    ```

    ## Use instead
    ```python
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    ```

    ## References
    PyTorch documentation: `torch.optim`, "Taking an optimization step".
    """
    loop = m.loop
    if loop is None:
        return not_applicable(NO_SCRIPT)
    if loop.steps or loop.moved:
        return []
    if loop.ended != "end" and loop.backwards < limits["backwards"]:
        return not_measured(f"the script took {loop.backwards} backward passes before it was stopped")
    name = loop.optimizer or "optimizer"
    count = f"none of the {loop.parameters} parameters of {name}" if loop.parameters else "no parameter"
    message = f"{loop.backwards} backward passes and not one step: {count} changes, and the model stays what it was"
    evidence = (Evidence("steps of the optimizer", 0, 1, "<", f"in {loop.backwards} backward passes"),)
    by_hand = "" if loop.parameters else ", or change the parameters themselves in place: `p = p - ...` makes another tensor"
    remedies = (Remedy("call-step", f"call {name}.step() after backward(){by_hand}"),)
    return [found("error", message, location=loop.backward_site, evidence=evidence, remedies=remedies, confirmed=BY_VALUE)]


@rule(
    "LOOP002",
    "clipping-misplaced",
    up_to="error",
    needs=("loop",),
    limits={"share": Limit(0.5, "of the calls", "heuristic: a misplaced call is misplaced every time")},
    explains=("OPT001", "CLIP001", "GRAD002"),
)
def clipping_misplaced(m: Measurement, limits: Limits) -> Verdict:
    """Gradient clipping stands where it has no effect, or the wrong one.

    ## What it finds
    Calls of `clip_grad_norm_` or `clip_grad_value_` after the step that used the gradients, before the backward pass that
    makes them, on no parameter at all (a generator that was used up), on parameters that no optimizer trains, or on
    gradients that a GradScaler has scaled and not unscaled.

    ## Why it matters
    The training is not clipped although it says so, and the spikes that clipping was meant for go through. Clipping scaled
    gradients is worse: all of them are far above the threshold, and are cut to a sliver of what they were.

    ## How it is measured
    The script is run; at each call it is looked at whether the parameters belong to an optimizer, whether they have
    gradients, whether these come from a backward pass after the optimizer's last step, and whether they are scaled.

    ## Limits and their sources
    More than `share` 50 % of the calls at one place (heuristic). A matter of order otherwise: there is nothing to measure.

    ## When to ignore it
    When the call only measures a norm for a log; then use a threshold of infinity.

    ## Example
    ```python
    loss.backward()
    optimizer.step()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    ```

    ## Use instead
    ```python
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    ```

    ## References
    PyTorch documentation: `torch.nn.utils.clip_grad_norm_`; "Automatic Mixed Precision examples", gradient clipping.
    """
    if m.loop is None:
        return not_applicable(NO_SCRIPT)
    if m.loop.clips is None:
        return not_measured("whether the loop clips gradients cannot be told: it changes them by other means than torch's functions")
    if not m.loop.clips:
        return not_applicable("the script does not clip gradients")
    findings = (_clip(c, m.loop, limits["share"]) for c in m.loop.clips if math.isfinite(c.threshold))
    return [f for f in findings if f is not None]


def _clip(clip: LoopClip, loop: LoopFacts, share: float) -> Finding | None:
    call = f"clip_grad_{clip.kind}_"
    step = "the update" if loop.by_hand else f"the step of {loop.optimizer or 'the optimizer'}"
    between = f"call it between backward() and {'the update' if loop.by_hand else 'step()'}"
    factor = f" by {number(loop.scaler.factor)}" if loop.scaler and loop.scaler.scaled else ""
    cases = (
        (clip.empty, "is given no parameter: an iterator such as parameters() is used up by its first user", "call parameters() anew"),
        (clip.foreign, f"is given {clip.parameters} parameters that no optimizer trains", "pass the parameters that the optimizer holds"),
        (clip.late, f"comes after {step} that used the gradients", between),
        (clip.early, "comes before the backward pass: there is no gradient yet", between),
        (clip.scaled, f"acts on gradients that are still scaled{factor}", "call scaler.unscale_(optimizer) before it"),
    )
    count, what, cure = max(cases, key=lambda case: case[0])
    if not count > share * clip.calls:
        return None
    effect = "all of them are cut" if count == clip.scaled and clip.scaled else "nothing is clipped"
    return found(
        "error",
        f"{call} at {number(clip.threshold)} {what}, in {count} of {clip.calls} calls (limit {percent(share)}): {effect}",
        location=clip.site,
        evidence=(Evidence("calls at the wrong time or on the wrong parameters", count, share * clip.calls, ">", "calls"),),
        remedies=(Remedy("move-clipping", cure),),
        confirmed=BY_VALUE,
    )


@rule(
    "LOOP003",
    "evaluation-mode-in-training",
    up_to="error",
    needs=("loop",),
    limits={"steps": Limit(2, "steps", "heuristic: one step may be an experiment of the script's")},
    explains=("NORM005",),
)
def evaluation_mode_in_training(m: Measurement, limits: Limits) -> Verdict:
    """Steps are taken in evaluation mode: dropout is off, or normalization does not follow its batches.

    ## What it finds
    Models that the script has put into evaluation mode with `eval()`, for a validation in most cases, and that go on training
    without a `train()`. Models without dropout and batch normalization do not care, and are left out; so are models that
    are in training mode but for some frozen layers.

    ## Why it matters
    Dropout no longer regularises. Batch normalization uses running statistics that never change again: from scratch these
    are 0 and 1, and the network trains without normalization.

    ## How it is measured
    The script is run for up to 200 steps; at each forward pass that leads to a step the mode of the called module is noted,
    with its dropouts of a rate above 0 and its batch normalizations with trained weights.

    ## Limits and their sources
    At least `steps` 2 steps (heuristic). An error when the model was in training mode before, or when a normalization has
    seen no batch; a warning otherwise: fine-tuning in evaluation mode can be meant.

    ## When to ignore it
    When a trained model is fine-tuned with dropout off and statistics fixed on purpose.

    ## Example
    ```python
    model.eval()
    validate(model)
    for x, y in loader:
        train_step(model, x, y)
    ```

    ## Use instead
    ```python
    model.eval()
    validate(model)
    model.train()
    for x, y in loader:
        train_step(model, x, y)
    ```

    ## References
    PyTorch documentation: `torch.nn.Module.eval`; "Autograd mechanics", evaluation mode.
    """
    loop = m.loop
    if loop is None:
        return not_applicable(NO_SCRIPT)
    seen = loop.evaluation
    if seen is None:
        return not_measured("the mode of the model in training steps was not looked at")
    if seen.steps < limits["steps"]:
        return []
    severity: Severity = "error" if seen.trained_before or seen.fresh else "warning"
    since = f"from step {seen.first} on" if seen.trained_before else "from the start"
    limit = number(limits["steps"])
    message = f"{seen.steps} of {loop.steps} steps (limit {limit}), {since}, are taken in evaluation mode: {_effects(seen)}"
    evidence = (Evidence("steps in evaluation mode", seen.steps, limits["steps"], ">=", f"of {loop.steps} steps"),)
    remedies = (Remedy("restore-training-mode", f"call train() on the model before step {seen.first}, after each evaluation"),)
    return [
        found(
            severity,
            message,
            layers=(*seen.dropouts, *seen.norms),
            location=seen.site or loop.backward_site,
            evidence=evidence,
            remedies=remedies,
            confirmed=BY_VALUE if severity == "error" else "",
        )
    ]


def _effects(seen: LoopEvaluation) -> str:
    effects = []
    if seen.norms:
        state = "running statistics that have seen no batch" if seen.fresh else "fixed running statistics"
        effects.append(f"{layers_in_words(seen.norms)} use {state}")
    if seen.dropouts:
        effects.append(f"{layers_in_words(seen.dropouts)} drop nothing")
    return " and ".join(effects)


RULES = (optimizer_never_steps, clipping_misplaced, evaluation_mode_in_training)
