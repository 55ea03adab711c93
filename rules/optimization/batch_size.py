import math

from gradcheck.analysis.wording import number
from gradcheck.types.checks import SampleGradients
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, not_measured, rule

GROWTH = 10.0  # of the noise scale during training


def interval(s: SampleGradients) -> str:
    """ "26 samples (17 to 58, 8 draws)"."""
    high = number(s.noise_high) if s.noise_high is not None and math.isfinite(s.noise_high) else "any number"
    return f"{number(s.noise_scale or 0)} samples ({number(s.noise_low or 0)} to {high}, {s.draws} draws)"


def size_finding(s: SampleGradients, limit: float, *, large: bool) -> Finding:
    scale = s.noise_scale or 0.0
    means = (
        "most of the batch repeats what a smaller one would say: more, smaller steps would learn more from the same samples"
        if large
        else "the direction of a step is mostly noise: the rate has to be low"
    )
    message = (
        f"batches of {s.batch} samples are {'more' if large else 'less'} than {number(limit)} times the gradient's noise scale, "
        f"{interval(s)}: {means}"
    )
    evidence = Evidence("batch over gradient noise scale", s.batch / scale, limit, ">" if large else "<", "times")
    if large:
        wanted = 2 ** round(math.log2(GROWTH * max(scale, 1.0)))
        text = f"try batches of about {min(wanted, s.batch // 2)} samples if time, not memory, is short"
        cure = Remedy("smaller-batch", text, "advice")
    else:
        cure = Remedy("larger-batch", f"accumulate the gradients of {math.ceil(limit * scale / s.batch)} batches per step", "advice")
    return found("info", message, evidence=evidence, remedies=cure)


@rule(
    "OPT006",
    up_to="info",
    needs=("samples", "probe"),
    limits={
        "wasteful": Limit(40.0, "noise scales", "McCandlish et al.: beyond a few, steps gain little, and it grows tenfold in training"),
        "least": Limit(
            8.0, "samples", "healthy small networks have 9 to 735; below, all samples still pull the same way, as towards an offset"
        ),
        "noisy": Limit(1 / 30, "noise scales", "heuristic; healthy small networks have noise scales from 9 to 735 samples"),
        "largest": Limit(1e7, "samples", "heuristic: McCandlish et al. report up to millions; beyond, the mean gradient is 0"),
    },
)
def batch_size(m: Measurement, limits: Limits) -> Verdict:
    """The batch is far larger, or far smaller, than the noise of the gradient calls for.

    ## What it finds
    Batches that are several times the gradient noise scale, and batches that are a small fraction of it.

    ## Why it matters
    Far below the noise scale twice the batch gives nearly twice the progress per step, at half of it 1.5 times; far above it gives
    next to none, and the same samples would be better spent on more steps.

    ## How it is measured
    The simple noise scale, trace of the covariance of a sample's gradient over the squared norm of the mean
    gradient, at the weights that the probe training left. Eight groups of samples, none shared, from up to eight
    batches; the inner products of different groups give the squared norm without bias, and leaving out one group
    at a time gives its standard error. In evaluation mode; at most a million evenly spaced entries of the gradient.
    Nothing is said when the signal is not significant. The noise scale grows while a model learns: this is a
    snapshot of the first steps.

    ## Limits and their sources
    `wasteful` 40: advice when the batch is more than this many times the upper end of the interval (two standard errors): a few
    noise scales, and their growth during training. Not below `least` 8 samples, where all samples still pull the same way.
    `largest` 1e7: nothing is said above; that is a loss at its minimum, where the mean gradient is rounding.
    `noisy` 1/30: advice when the batch is less than this share of the lower end, which few measurements of this size can show.
    All are heuristics. Measured on small networks: 9 to 165 samples before training, 50 to 735 after 50 steps.

    ## When to ignore it
    When the hardware is idle otherwise, and late in training, when the noise scale is larger.

    ## Example
    ```python
    loader = DataLoader(data, batch_size=4096)  # noise scale 60
    ```

    ## Use instead
    ```python
    loader = DataLoader(data, batch_size=128)
    ```

    ## References
    McCandlish et al. 2018, An Empirical Model of Large-Batch Training, appendix A.1.
    """
    if not m.data.given:
        return not_applicable("the data are synthetic")
    s = m.samples
    if s is None or s.noise_scale is None or s.noise_low is None or s.noise_high is None:
        return not_measured("the gradient noise scale could not be told from 8 groups of samples")
    if s.noise_low > limits["largest"]:
        return not_measured("the mean gradient is nearly zero: the training has ended where the samples' gradients cancel")
    if s.batch > limits["wasteful"] * s.noise_high and s.noise_low >= limits["least"]:
        return [size_finding(s, limits["wasteful"], large=True)]
    if s.batch < limits["noisy"] * s.noise_low:
        return [size_finding(s, limits["noisy"], large=False)]
    return []
