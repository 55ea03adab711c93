"""Updates written by hand, as optimizers of torch: each gets the one whose rule it follows."""

from typing import Any

import torch

from gradcheck.capture.events import OptimizerTrace
from gradcheck.capture.recorder import Recorder
from gradcheck.capture.update_rule import UpdateRule, recognised
from gradcheck.instrument.loop_journal import Clip

SMALLEST = 1e-12  # norm that is divided by
SELDOM = 0.1  # of the steps of the busiest training: what changes weights less often prepares or ends one


class NormalizedSGD(torch.optim.Optimizer):
    """Steps of one length, along the gradient."""

    def __init__(self, params: Any, lr: float = 0.1, weight_decay: float = 0.0, *, maximize: bool = False) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay, "maximize": maximize})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm([p.grad for p, _ in moved])
        for p, group in moved:
            p.mul_(1 - group["lr"] * group["weight_decay"])
            p.sub_(group["lr"] * (-1 if group["maximize"] else 1) * p.grad / norm.clamp(min=SMALLEST))


def tell_rules(recorder: Recorder) -> None:
    """Gives each update by hand the equivalent optimizer. Forgets those that turn out not to be training."""
    for watched in list(recorder.optimizers.values()):
        if watched.changes is not None and not watched.changes.happened and len(watched.steps) == 1:
            del recorder.optimizers[id(watched.optimizer)]  # the function that was to change them raised
            recorder.unclaimed += watched.steps[0].passes
    stepped = [w for w in recorder.optimizers.values() if w.steps]
    most = max((len(w.steps) for w in stepped), default=0)
    by_torch = [w for w in stepped if w.changes is None]
    held = frozenset[int]().union(*(w.ids for w in by_torch))
    for watched in [w for w in stepped if w.changes is not None]:
        rule = _rule(watched)
        if watched.ids <= held or len(watched.steps) < SELDOM * most or (by_torch and rule is None):
            del recorder.optimizers[id(watched.optimizer)]
        elif rule is not None:
            _follow(recorder, watched, rule)


def _rule(watched: OptimizerTrace) -> UpdateRule | None:
    assert watched.changes is not None
    changes = watched.changes.by_leaf
    return recognised(list(changes.values()), [torch.finfo(watched.memo[key].dtype).eps for key in changes], watched.changes.norms)


def _follow(recorder: Recorder, watched: OptimizerTrace, rule: UpdateRule) -> None:
    assert watched.changes is not None
    groups: dict[tuple[float, float], list[int]] = {}
    for key, factor, decay in zip(watched.changes.by_leaf, rule.factors, rule.decays, strict=True):
        groups.setdefault((factor, decay), []).append(key)
    climbs = sum(rule.rates) < 0
    rates = [abs(r) for r in rule.rates]
    first = next((r for r in rates if r), 0.0)
    given = [
        {"params": [watched.memo[key] for key in keys], "lr": first * factor, **_decay(rule, decay)}
        for (factor, decay), keys in groups.items()
    ]
    watched.keys = tuple(key for keys in groups.values() for key in keys)
    watched.copy = _class(rule)(given, maximize=climbs, **_settings(rule))
    if rule.clipped is not None:
        clip = Clip("norm", rule.clipped, watched.step_site, {id(watched)}, len(watched.steps), len(watched.parameters))
        recorder.journal.clips["norm", watched.step_site] = clip
    watched.base_rate = first
    watched.site = watched.step_site
    for step, rate in zip(watched.steps, [*rates, *rates[-1:] * len(watched.steps)], strict=False):
        step.rates = tuple(rate * factor for factor, _ in groups)
        step.rate = max(step.rates)


def _class(rule: UpdateRule) -> Any:
    """Adam with decoupled decay is AdamW; so is RMSprop with decoupled decay, but for its first steps."""
    if rule.normalized:
        return NormalizedSGD
    shrinks = any(rule.decays) and rule.kind in ("Adam", "RMSprop")
    return torch.optim.AdamW if shrinks else getattr(torch.optim, rule.kind)


def _settings(rule: UpdateRule) -> dict[str, Any]:
    if rule.kind == "RMSprop" and _class(rule) is torch.optim.AdamW:
        return {"betas": (0.0, rule.settings["alpha"]), "eps": rule.settings["eps"]}
    return dict(rule.settings)


def _decay(rule: UpdateRule, decay: float) -> dict[str, float]:
    """SGD adds decay to the gradient, so momentum amplifies it."""
    if rule.kind == "SGD" and decay:
        decay *= 1 - rule.settings.get("momentum", 0.0)
    return {"weight_decay": max(0.0, decay or rule.coupled)}
