"""Facts about the batches."""

from dataclasses import dataclass

from gradcheck.types.layers import LayerKind


@dataclass(frozen=True)
class InputFacts:
    """One input tensor over the batches of the scan."""

    name: str
    shape: tuple[int, ...]  # of the first batch
    dtype: str
    mean: float = 0.0
    std: float = 0.0
    min: float = 0.0
    max: float = 0.0
    feature_std_ratio: float | None = None  # largest over smallest non-zero std of a feature; 2-D inputs only
    non_finite: int = 0
    first_non_finite: tuple[int, ...] | None = None  # batch, then the index inside it: sample, feature, ...
    constant_features: int = 0
    used_by: LayerKind | None = None  # kind of the first layer that takes it
    duplicate_features: int = 0  # columns of 2-D inputs that are another column, scaled and shifted; constant ones do not count
    duplicate_samples: int = 0  # samples that are exactly another one; 2-D and larger inputs
    conflicting_samples: int = 0  # of these, those whose twin has another label
    samples: int = 0  # that were compared; 0: they were not
    moments: tuple[tuple[float, float], ...] = ()  # mean and std of each feature, or channel of images; of no more than 64


@dataclass(frozen=True)
class LabelFacts:
    """Class labels over the batches of the scan."""

    classes: int  # width of the model's output, where known; else the largest label + 1
    counts: tuple[int, ...]  # occurrences by class
    classes_per_batch: tuple[int, ...]
    minimum: int
    maximum: int
    sorted: bool = False  # labels of consecutive batches come in order: the data are not shuffled
    ignored: int = 0  # entries equal to ignore_index


@dataclass(frozen=True)
class Turned:
    """Maps of targets that fit their image, and others that fit it only mirrored: images and maps that were turned by different draws."""

    samples: int
    fitting: float  # share that fits as it is, clearly better than mirrored,
    mirrored: float  # and the reverse
    how: str  # "left to right", "top to bottom"


@dataclass(frozen=True)
class DataFacts:
    given: bool  # False: synthesised by gradcheck, and rules that judge data do not apply
    batches: int
    batch_size: int
    inputs: tuple[InputFacts, ...] = ()
    labels: LabelFacts | None = None
    repeated: bool = False  # fewer batches than steps: they were cycled
    turned: Turned | None = None  # where images with maps of their size were compared
