import itertools
import math

from gradcheck.analysis.wording import BY_VALUE, number, percent, quoted
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.gauges import RankFacts, RankLevel, RankStep
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, required, rule

WRAP = "wrap the model in DistributedDataParallel, and call that: it copies rank 0's parameters, and averages gradients in backward()"
SYNC = "leave no_sync() for the last backward pass before step(), and call the DistributedDataParallel module, not the model inside it"


@rule(
    "LOOP008",
    up_to="error",
    needs=("loop",),
    limits={
        "distance": Limit(1e-5, "of a parameter's norm", "heuristic: float32 rounds at 1e-7, a step moves 1e-3"),
        "steps": Limit(2, "measured steps", "heuristic: one may fall between an update and its exchange"),
        "level": Limit(0.3, "of the others' loss", "heuristic; measured: data alike 0.007, other labels on one of three ranks 0.44"),
        "score": Limit(10, "standard errors", "measured: data alike 1.5, other labels 29"),
        "jump": Limit(
            8,
            "times the distance before",
            "measured: losses alike, noisy and with memory, 5.3 at most in 960 runs; other labels or units from one step on: 20 and more",
        ),
        "losses": Limit(100, "steps", "heuristic: fewer tell little of the data"),
    },
)
def ranks_disagree(m: Measurement, limits: Limits) -> Verdict:
    """The processes of a distributed training hold different parameters, where each should hold the same.

    ## What it finds
    Replicas of a parameter that are not equal on all ranks: models that were built from different seeds and never synchronised,
    gradients that are not averaged (no DistributedDataParallel, a model that is called without it, steps inside `no_sync()`),
    parameters that get a gradient on some ranks only. Ranks whose losses are not like the others': they read other data. And ranks that
    are all given the same batches, as without a DistributedSampler, which teaches them what one of them would learn alone.

    ## Why it matters
    Each rank trains a model of its own on its part of the data. The run costs as much as a distributed one, and the model that rank 0
    saves has seen the data of rank 0 only. Where some of the gradients are averaged, they are gradients of different models.

    ## How it is measured
    At each measured step the norm and 64 entries of every replicated parameter, before the optimizer's step, are compared with those
    of rank 0. Sharded parameters (`fully_shard`), and those that DistributedDataParallel is told to ignore, are left out; so is
    all of it where ranks are divided into groups.

    ## Limits and their sources
    A relative distance above `distance` 1e-5 at the last `steps` 2 measured steps: gradients that were averaged are equal to the last bit,
    and so are the steps made of them. Parameters that were found equal again in between are averaged now and then, as local SGD does:
    that is a note. Where they are equal, the losses of the ranks over `losses` (100) steps or more, in which all have the same weights: a
    mean that lies `level` (30 %) away from that of the others, beyond `score` (10 standard errors of their difference), is a warning,
    as are ten steps in which it does, and `jump` (8) times as far as any ten before.
    So are batches that are equal on all ranks, bit for bit, in all steps that were compared, `steps` or more, where each rank should have
    its own. Of a watched run, what all layers give is compared.

    ## When to ignore it
    When each rank is to train a model of its own: ensembles, searches over settings; and when each is given a task of its own.

    ## Example
    ```python
    dist.init_process_group("nccl")
    model = Net().to(device)
    ```

    ## Use instead
    ```python
    dist.init_process_group("nccl")
    model = DistributedDataParallel(Net().to(device))
    ```

    ## References
    PyTorch documentation: "Distributed Data Parallel"; `torch.nn.parallel.DistributedDataParallel.no_sync`.
    """
    ranks = required(m.ranks, not_applicable("one process trains"))
    other = [_jumped(ranks.jump, ranks.count, limits)] if ranks.jump is not None and _jumps(ranks.jump, limits) else []
    if not other and ranks.level is not None and _stands_apart(ranks.level, limits):
        other.append(_other_data(ranks.level, ranks.count, limits))
    if ranks.same_batches >= limits["steps"]:
        other.append(_same_data(ranks))
    if not ranks.steps and not other:
        why = next((x.why for x in m.not_measured if x.what in ("replicas", "ranks")), "")
        return not_measured(why) if why else not_applicable("no parameter is replicated")
    limit, least = limits["distance"], max(1, round(limits["steps"]))
    apart = [s.distance > limit for s in ranks.steps]
    if len(apart) < least or not all(apart[-least:]):
        return other
    since = len(apart) - next((i for i, far in enumerate(reversed(apart)) if not far), len(apart))
    again = any(far and not then for far, then in itertools.pairwise(apart))
    return [_averaged(ranks, since, limit) if again else _apart(ranks, since, limit)]


def _stands_apart(level: RankLevel, limits: Limits) -> bool:
    far = abs(level.own - level.others) > limits["level"] * abs(level.others)
    return far and level.steps >= limits["losses"] and level.score > limits["score"]


def _jumps(jump: RankLevel, limits: Limits) -> bool:
    """Whether the losses of one rank leave the others' from one step on."""
    far = abs(jump.own - jump.others) > limits["level"] * abs(jump.others)
    return far and jump.steps >= limits["losses"] and jump.score > limits["jump"]


def _jumped(jump: RankLevel, count: int, limits: Limits) -> Finding:
    message = (
        f"from step {jump.since} on, or soon after, the losses of rank {jump.rank} are {number(jump.own)}, those of the other "
        f"{'rank' if count == 2 else 'ranks'} {number(jump.others)}, {number(jump.score)} times as far apart as ever before: the weights "
        "are the same, so its data changed"
    )
    return found(
        "warning",
        message,
        evidence=Evidence("distance of a rank's losses from the others', over that before", jump.score, limits["jump"], ">", "times"),
        remedies=(
            Remedy("look-at-rank", f"look at what rank {jump.rank} reads from step {jump.since} on: the file, its labels, its units"),
        ),
    )


def _other_data(level: RankLevel, count: int, limits: Limits) -> Finding:
    by = abs(level.own - level.others) / abs(level.others) if level.others else math.inf
    rest, whose = ("rank", "the data of the two are not alike") if count == 2 else ("ranks", "its data are not like theirs")
    message = (
        f"the losses of rank {level.rank} are {number(level.own)} on average over {level.steps} steps, those of the other {rest} "
        f"{number(level.others)} ({percent(by) if by < 1 else f'{number(by)} times'} apart, limit {percent(limits['level'])}; "
        f"{number(level.score)} standard errors): the weights are the same, so {whose}"
    )
    return found(
        "warning",
        message,
        evidence=Evidence("distance of a rank's mean loss from the others'", by, limits["level"], ">"),
        remedies=Remedy("look-at-rank", f"compare files, preprocessing and labels of rank {level.rank} with those of another rank"),
    )


def _same_data(ranks: RankFacts) -> Finding:
    steps, text = ranks.same_batches, "give each rank its own part: a DataLoader with sampler=DistributedSampler(dataset)"
    return found(
        "warning",
        f"the {ranks.count} ranks are given the same batch in each of {steps} steps that were compared: together they learn what one of "
        f"them would alone, at {ranks.count} times the cost",
        evidence=Evidence("steps with the same batch on all ranks", steps, 0, ">"),
        remedies=Remedy("data-of-its-own", text + ", and set_epoch(epoch) in each epoch; or draw from another seed on each rank"),
    )


def _apart(ranks: RankFacts, since: int, limit: float) -> Finding:
    first, last = ranks.steps[since], ranks.steps[-1]
    worst = f"{quoted(last.parameter)} on rank {last.rank} is {_far(last)} away from rank 0's (limit {number(limit)})"
    share = f"{last.differing} of {last.compared} parameters"
    if first.step == 0:
        how = f"the {ranks.count} ranks started from different parameters, and nothing brings them together"
    else:
        how = f"the parameters of {ranks.count} ranks drift apart from step {first.step} on"
    message = f"{how}: {worst}, {share} at step {last.step}; {_cause(ranks)}; each rank trains a model of its own, on a part of the data"
    return found(
        "error",
        message,
        layers=(last.parameter.rpartition(".")[0],),
        evidence=_evidence(last, limit),
        remedies=Remedy("synchronise-ranks", SYNC if ranks.wrapper else WRAP),
        confirmed=BY_VALUE,
    )


def _cause(ranks: RankFacts) -> str:
    one_sided = next((s.one_sided for s in ranks.steps if s.one_sided), ())
    if one_sided:
        return f"{', '.join(one_sided)} had a gradient on some ranks only"
    gradients = max((s.gradients for s in ranks.steps), default=0.0)
    if gradients > 0:
        return f"their gradients are not averaged before the step (their norms differ by up to {percent(gradients)})"
    return "their gradients are equal"


def _averaged(ranks: RankFacts, since: int, limit: float) -> Finding:
    last = ranks.steps[-1]
    return found(
        "info",
        f"the parameters of {ranks.count} ranks differ since step {ranks.steps[since].step}, and were equal before, after they had "
        f"differed: {quoted(last.parameter)} on rank {last.rank} is {_far(last)} away from rank 0's (limit {number(limit)})",
        layers=(last.parameter.rpartition(".")[0],),
        evidence=_evidence(last, limit),
        remedies=Remedy("synchronise-ranks", "save and evaluate the model after its parameters were averaged"),
    )


def _far(step: RankStep) -> str:
    far = step.distance
    return percent(far) if far < 1 else f"{number(far)} times its norm" if far < float("inf") else "infinitely far"


def _evidence(step: RankStep, limit: float) -> Evidence:
    return Evidence("distance of a replica over its norm", step.distance, limit, ">", f"at step {step.step}")
