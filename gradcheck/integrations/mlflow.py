"""A sink for MLflow: metrics, and the report as artifacts (`gradcheck/report.html`, and `gradcheck/report.json` for `gradcheck report`).

with mlflow.start_run(), gradcheck.watch(model, optimizer, sinks=[MLflow()]):
"""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

from gradcheck.errors import ConfigError
from gradcheck.live.sinks import MOST_LAYERS, PREFIX, Sink
from gradcheck.types.gauges import Magnitudes
from gradcheck.types.report import Report

try:
    import mlflow
except ImportError as error:
    raise ConfigError("this sink needs mlflow, which is not installed", hint="pip install 'gradcheck[mlflow]'") from error


class MLflow(Sink):
    """`run_id`: of the run that gets the numbers; None: the active one. It stays open. MLflow has no histograms, and gets none.

    `layers`: how many layers it gets; None: all. Raises `gradcheck.errors.ConfigError` where no run is active.
    """

    def __init__(self, run_id: str | None = None, *, layers: int | None = MOST_LAYERS) -> None:
        self.layers = layers
        active = mlflow.active_run()
        if run_id is None and active is None:
            raise ConfigError("no run of MLflow is active", hint="mlflow.start_run() first, or MLflow(run_id)")
        self.run_id = run_id or active.info.run_id

    def log(self, step: int, scalars: Mapping[str, float], magnitudes: Mapping[str, Magnitudes]) -> None:
        mlflow.log_metrics(dict(scalars), step=step, run_id=self.run_id)

    def finish(self, report: Report) -> None:
        with TemporaryDirectory() as folder:
            for name, write in (("report.html", report.to_html), ("report.json", report.to_json)):
                write(Path(folder, name))
                mlflow.log_artifact(str(Path(folder, name)), PREFIX, run_id=self.run_id)
