"""A sink for TensorBoard: scalars, histograms of gradients, and the findings as text.

with SummaryWriter("runs/a") as writer, gradcheck.watch(model, optimizer, sinks=[TensorBoard(writer)]):
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gradcheck.errors import ConfigError
from gradcheck.live.sinks import MOST_LAYERS, Sink
from gradcheck.types.gauges import Magnitudes
from gradcheck.types.report import Report


class TensorBoard(Sink):
    """`writer`: a SummaryWriter, of torch or of tensorboardX, which stays open; or a folder, for a writer of its own.

    `layers`: how many layers it gets; None: all. Raises `gradcheck.errors.ConfigError` where TensorBoard is missing.
    """

    def __init__(self, writer: Any, *, layers: int | None = MOST_LAYERS) -> None:
        self.layers = layers
        self._own = isinstance(writer, str | Path)
        self.writer: Any = _writer(writer) if self._own else writer
        if not hasattr(self.writer, "add_scalar"):
            raise ConfigError(f"TensorBoard needs a SummaryWriter or a folder, not {type(writer).__name__}", hint="TensorBoard('runs/1')")

    def log(self, step: int, scalars: Mapping[str, float], magnitudes: Mapping[str, Magnitudes]) -> None:
        for name, value in scalars.items():
            self.writer.add_scalar(name, value, step)
        for name, found in magnitudes.items():
            self._histogram(name, found, step)

    def _histogram(self, name: str, found: Magnitudes, step: int) -> None:
        """Of log2 of the entries' size; sums are those of the bins' centres."""
        edges = found.edges
        centres = [edge + 0.5 for edge in edges[:-1]]
        self.writer.add_histogram_raw(
            name,
            min=edges[0],
            max=edges[-1],
            num=sum(found.counts),
            sum=sum(n * c for n, c in zip(found.counts, centres, strict=True)),
            sum_squares=sum(n * c * c for n, c in zip(found.counts, centres, strict=True)),
            bucket_limits=list(edges[1:]),
            bucket_counts=list(found.counts),
            global_step=step,
        )

    def finish(self, report: Report) -> None:
        from gradcheck.report.markdown import render

        self.writer.add_text("gradcheck/report", render([report]))
        if self._own:
            self.writer.close()
        else:
            self.writer.flush()


def _writer(folder: str | Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ConfigError("this sink needs TensorBoard, which is not installed", hint="pip install 'gradcheck[tensorboard]'") from error
    return SummaryWriter(str(folder))
