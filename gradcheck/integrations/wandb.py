"""A sink for Weights & Biases: scalars, histograms of gradients, and the report as a page.

    with wandb.init(project="mine") as run, gradcheck.watch(model, optimizer, sinks=[WandB(run)]):

Numbers are drawn over `gradcheck/step`, an axis of their own. They are not logged with `step=`: W&B drops rows that are behind its own
counter, which the user's calls of `run.log` move on as they like.
"""

from collections.abc import Mapping
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.live.sinks import MOST_LAYERS, PREFIX, Sink
from gradcheck.types.gauges import Magnitudes
from gradcheck.types.report import Report

try:
    import wandb
except ImportError as error:
    raise ConfigError("this sink needs wandb, which is not installed", hint="pip install 'gradcheck[wandb]'") from error

AXIS = f"{PREFIX}/step"


class WandB(Sink):
    """`run`: what `wandb.init` returned; None: the active one. It stays open.

    `layers`: how many layers it gets; None: all. Raises `gradcheck.errors.ConfigError` where there is no run.
    """

    def __init__(self, run: Any = None, *, layers: int | None = MOST_LAYERS) -> None:
        self.layers = layers
        self.run: Any = run if run is not None else wandb.run
        if not hasattr(self.run, "log"):
            raise ConfigError("there is no run of Weights & Biases", hint="wandb.init(...) first, or WandB(run)")
        self.run.define_metric(AXIS, hidden=True)
        self.run.define_metric(f"{PREFIX}/*", step_metric=AXIS)

    def log(self, step: int, scalars: Mapping[str, float], magnitudes: Mapping[str, Magnitudes]) -> None:
        drawn = {name: wandb.Histogram(np_histogram=(list(m.counts), list(m.edges))) for name, m in magnitudes.items()}
        self.run.log({AXIS: step, **scalars, **drawn})

    def finish(self, report: Report) -> None:
        self.run.log({f"{PREFIX}/report": wandb.Html(report.to_html(), inject=False)})
        self.run.summary[f"{PREFIX}/codes"] = sorted({finding.code for finding in report.headlines})
