from gradcheck.analysis.wording import BY_VALUE, number, percent
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule
from gradcheck.types.structure import Router

FEWEST_CHOICES = 50  # for each expert, on average: SCIENCE, section 1 (an expert without tokens says nothing before)
ENOUGH = 200  # in all, for the share of the busiest: its standard error is 0.02 at 0.9
FEWEST_STEPS = 50  # enough for a router to leave a bad start
HEALTHY = "calibration: 18 mixtures of 2 to 64 experts, with and without a balancing term, after 300 steps"


@rule(
    "MOE001",
    up_to="error",
    needs=("routing",),
    wants=("probe",),
    limits={
        "taken_error": Limit(0.99, "of the choices", f"{HEALTHY}: at most 0.54"),
        "taken": Limit(
            0.9, "of the choices", f"{HEALTHY}: at most 0.54; with a router that starts on one choice and no balancing term 0.93"
        ),
        "idle": Limit(0.5, "of the experts", f"{HEALTHY}: at most 0.38 with up to 16 experts; 0 with a balancing term"),
    },
    explains=("GRAPH001", "GRAD004"),
)
def router_collapse(m: Measurement, limits: Limits) -> Verdict:
    """A router that sends nearly all tokens to the same experts.

    ## What it finds
    Mixtures of experts in which as many experts as are chosen for one token get nearly all tokens, and such in which half of
    the experts get none. Recognised by the choices: a top-k, argmax or maximum over scores of the model, one for each of
    several modules that are alike, or for each slice of one weight, in the module that holds them or one beside them.

    ## Why it matters
    An expert without tokens gets no gradient, and neither does its score, so nothing brings it back. The
    model computes like a small dense one and uses the memory of a large one.

    ## How it is measured
    The choices in up to four batches, in training mode, so that noise and dropout of a router have their say, after the short
    training. The shares that experts get before it, and the entropy of the scores, are evidence. No judgement with fewer
    than 50 choices for each expert, nor of the busiest with fewer than 200 in all.

    ## Limits and their sources
    `taken-error` 0.99 and `taken` 0.9: share of the choices that the busiest experts get, as many as are chosen for a token; only
    where there are at least twice as many. `idle` 0.5: share of experts without a token. Calibrated after 300 steps on mixtures of
    2 to 64 experts, one, two or eight chosen, softmax and sigmoid scores, computed sparsely and densely. With a balancing term the
    busiest take 0.05 to 0.51, none is idle. Without one, 0.29 to 0.54, and up to 4 of 16 are idle, 32 and 53 of 64. Models of
    Transformers after 60 steps (Mixtral, Qwen2 and Qwen3 MoE, OLMoE, gpt-oss, Switch): 0.51 to 0.74. A router that starts on one choice:
    0.93 without a balancing term, 0.32 with one. An error needs at least 50 steps, in which a balancing term could have helped.

    ## When to ignore it
    When few of the experts are meant for these data, as in fine-tuning on one language.

    ## Example
    ```python
    loss = task_loss
    ```

    ## Use instead
    ```python
    load = F.one_hot(choice, experts).float().mean(0)
    loss = task_loss + 0.01 * experts * (load * probabilities.mean(0)).sum()
    ```

    ## References
    Shazeer et al. 2017, Outrageously large neural networks; Fedus, Zoph and Shazeer 2021, Switch transformers.
    """
    if not m.routers:
        return not_applicable("no module chooses among experts")
    enough = [r for r in m.routers if r.tokens * r.chosen >= min(ENOUGH, FEWEST_CHOICES * r.experts)]
    findings = [f for f in (_collapsed(m, r, limits) for r in enough) if f is not None]
    if not findings and not any(_is_busy(r) for r in enough):
        return not_measured(f"fewer than {FEWEST_CHOICES} choices for each expert")
    return findings


def _is_busy(r: Router) -> bool:
    return r.tokens * r.chosen >= FEWEST_CHOICES * r.experts


def _collapsed(m: Measurement, r: Router, limits: Limits) -> Finding | None:
    name = "taken_error" if r.taken >= limits["taken_error"] else "taken"
    if r.experts >= 2 * r.chosen and r.taken >= limits[name]:
        certain = name == "taken_error" and m.steps >= FEWEST_STEPS
        who = "one expert gets" if r.chosen == 1 else f"{r.chosen} experts get"
        message = (
            f"the router {r.layer or 'of the model'} has collapsed: {who} {percent(r.taken)} of the choices (limit "
            f"{percent(limits[name])}), and {r.idle} of {r.experts} get nothing. Without tokens an expert has no gradient"
        )
        evidence = Evidence("share of the busiest experts", r.taken, limits[name], ">=", "of the choices", r.layer)
        return _finding(r, "error" if certain else "warning", message, evidence)
    share = r.idle / r.experts
    if share >= limits["idle"] and _is_busy(r):
        message = (
            f"{r.idle} of {r.experts} experts ({percent(share)}, limit {percent(limits['idle'])}) of {r.layer or 'the model'} get no "
            "tokens: they have no gradient and stay as they are"
        )
        return _finding(r, "warning", message, Evidence("experts without a token", share, limits["idle"], ">=", "of the experts", r.layer))
    return None


def _finding(r: Router, severity: str, message: str, evidence: Evidence) -> Finding:
    before = sum(sorted(r.start_loads)[-r.chosen :])
    text = (
        "add a balancing term to the loss, 0.01 * experts * (share of the tokens * mean probability of each expert).sum(), and let the "
        "router start with small weights and no bias"
    )
    return found(
        "error" if severity == "error" else "warning",
        message,
        layers=[r.layer] if r.layer else [],
        location=r.site,
        evidence=[
            evidence,
            Evidence("the same share before the training", before, None, "=", "of the choices", r.layer),
            Evidence("entropy of the router", r.entropy, None, "=", f"of log {number(r.experts)}", r.layer),
        ],
        remedies=Remedy("balance-experts", text),
        confirmed=BY_VALUE,
    )
