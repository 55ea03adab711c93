from gradcheck.analysis.layer_groups import by_site
from gradcheck.analysis.wording import layers_in_words, probe_failure
from gradcheck.rules.normalization import NO_BATCH_NORM, batch_norms, norm_names
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_applicable, required, rule
from gradcheck.types.structure import Norm

TRAINED_BEFORE = "the model was trained before: its statistics were learned"


@rule(
    "NORM005",
    up_to="error",
    needs=("graph", "probe"),
    explains="GRAD001 GRAD002 ACT002 ACT004 INIT001 INIT003 INIT007 OPT001 OPT007 OPT002 LOSS003 GRAPH008 LOSS005".split(),
)
def batchnorm_in_eval(m: Measurement, limits: Limits) -> Verdict:
    """Batch normalization trained from scratch in evaluation mode: it normalises nothing.

    ## What it finds
    Batch normalizations that use their running statistics during the training step while these are still those
    of a new layer, mean 0 and variance 1, although the layer or what comes before it is trained. Frozen
    statistics of a model that was trained before are healthy and are not reported.

    ## Why it matters
    Dividing by 1 is no normalization: the network trains as if it had none, at rates that were chosen for one
    that has. The statistics never move, since evaluation mode does not update them.

    ## How it is measured
    The call of batch normalization in the first training step: whether it takes the batch's statistics, and the
    running ones that it was given. A model that is handed over in evaluation mode as a whole is trained in
    training mode.

    ## Limits and their sources
    None: the statistics are either untouched or not. An error when the probe training fails, a warning
    otherwise: a shallow network can learn without normalization.

    ## When to ignore it
    When the statistics are loaded after the scan.

    ## Example
    ```python
    def train(self, mode=True):
        super().train(mode)
        self.bn.eval()
    ```

    ## Use instead
    ```python
    model.train()  # and eval() only for evaluation, or for statistics that were trained before
    ```

    ## References
    Ioffe and Szegedy 2015, Batch Normalization, section 3.1.
    """
    norms = required(batch_norms(m) or None, NO_BATCH_NORM)
    if m.pretrained:
        return not_applicable(TRAINED_BEFORE)
    failure = probe_failure(m)
    faulty = [n for n in norms if not n.of_batch and n.fresh and n.trains]
    return [_frozen_finding(group, len(norms), failure) for group in by_site(faulty)]


def _frozen_finding(group: list[Norm], total: int, failure: str) -> Finding:
    message = (
        f"{layers_in_words(norm_names(group))} ({len(group)} of {total} batch normalizations) run in evaluation mode while training, with "
        f"running mean 0 and variance 1 as at their creation: they normalise nothing, and never will"
    )
    return found(
        "error" if failure else "warning",
        message,
        layers=norm_names(group),
        location=group[0].site,
        evidence=Evidence("untouched running statistics in use", float(len(group)), 0.0, ">", "layers", group[0].layer),
        remedies=Remedy("training-mode", f"leave {group[0].layer or 'the call'} in training mode while training", "safe"),
        confirmed=failure,
    )
