"""Does a trial find the remedy that is known to be right? On drawn tasks, and on sample_models/trial.

    python benchmarks/trial.py --draws 3 --budget 60
    python benchmarks/trial.py --samples --budget 120

A row a trial: what is on top, its effect with its interval, and whether that was expected. Exit 1 when a conclusion is wrong.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch

import gradcheck
from benchmarks.trial_tasks import CLIPPING, OPENING, REGULARIZING, TASKS
from gradcheck.config.settings import settings_from
from gradcheck.loading.spec import TargetSpec
from gradcheck.trials.options import Options
from gradcheck.trials.run import trial_target
from gradcheck.types.trial import TrialResult

ROOT = Path(__file__).resolve().parents[1]
# What may be on top (nothing: no remedy may be said to help), and from what to what its median effect on the validation loss may be.
NORMALIZING = tuple(name for name in OPENING if name != "replace-activation")
SAMPLES: dict[str, tuple[tuple[str, ...], tuple[float, float]]] = {
    "overfitting_digits.py": ((*REGULARIZING, *NORMALIZING), (-0.8, -0.15)),
    "sparse_regression.py:build_linear": (("l1", "elastic-net"), (-3.5, -1.0)),
    "sparse_regression.py:build_mlp": (REGULARIZING, (-0.4, -0.03)),
    "deep_sigmoid.py": (OPENING, (-2.4, -1.5)),
    "spiky_regression.py": (CLIPPING, (-2.0, -0.4)),
    "exploding_rnn.py": (("orthogonal-recurrent", "lower-learning-rate", *CLIPPING), (-1e6, -0.1)),
    "vgg_digits.py": ((*OPENING, *REGULARIZING, "orthogonal-init"), (-1.8, -0.2)),
    "resnet_digits.py": ((), (0.0, 0.0)),
    "well_fed.py": ((), (0.0, 0.0)),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=3, help="of every task")
    parser.add_argument("--first", type=int, default=0, help="seed of the first draw")
    parser.add_argument("--budget", type=float, default=60.0, help="seconds of every trial")
    parser.add_argument("--steps", type=int, help="of every run, instead of what the budget allows")
    parser.add_argument("--only", nargs="*", help="names of tasks or samples")
    parser.add_argument("--samples", action="store_true", help="sample_models/trial instead of drawn tasks")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    wrong = 0
    print("| task | steps | seeds | on top | effect on the loss | |\n|---|---|---|---|---|---|", flush=True)
    if asked.samples:
        for name, (expected, (lowest, highest)) in SAMPLES.items():
            if not asked.only or name in asked.only:
                spec = TargetSpec(str(ROOT / "sample_models" / "trial" / name))
                result = trial_target(spec, Options(budget=asked.budget, steps=asked.steps), settings_from(None)).trial
                assert result is not None
                wrong += not row(name, result, expected, lowest, highest)
    else:
        for name, (draw, expected) in TASKS.items():
            for seed in range(asked.first, asked.first + asked.draws):
                if not asked.only or name in asked.only:
                    task = draw(seed)
                    given = {"loss": task.loss, "optimizer": task.optimizer, "val_data": task.val}
                    result = gradcheck.trial(task.model, task.data, **given, budget=asked.budget, steps=asked.steps)
                    wrong += not row(f"{name} {seed}", result, expected)
    sys.exit(1 if wrong else 0)


def row(name: str, result: TrialResult, expected: tuple[str, ...], lowest: float = -math.inf, highest: float = 0.0) -> bool:
    """Prints a trial; whether its conclusion is the expected one, with an effect in the range."""
    top = result.helpful[0] if result.helpful else None
    effect = top.effect if top is not None else None
    right = (top is None) == (not expected) and (top is None or top.name.split(" + ")[0] in expected)
    right = right and (effect is None or lowest <= effect.difference <= highest)
    shown = f"{effect.difference:+.3g} [{effect.low:+.3g}, {effect.high:+.3g}]" if effect is not None else "no difference"
    title = top.title if top is not None else result.verdict.split(":")[0]
    print(f"| {name} | {result.steps} | {result.base.seeds} | {title} | {shown} | {'' if right else 'not expected'} |", flush=True)
    return right


if __name__ == "__main__":
    main()
