"""The rules of the gate: their findings are added after the others have been judged, in assertions.py and baseline.py."""

from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, not_applicable, rule


@rule("META002", "failed-assertion", up_to="error")
def failed_assertion(m: Measurement, limits: Limits) -> Verdict:
    """A number is beyond a limit that the project's configuration sets.

    ## What it finds
    Entries of `[tool.gradcheck.assert]` that the run does not meet: statistics such as `stat:loss.final`, and scores such
    as `score:gradients`. A number that could not be measured does not meet its limit.

    ## Why it matters
    The project says so: these limits are its own, and the severity is the one that it gives them.

    ## How it is measured
    Statistics are taken from the measurements, over the seeds by their median, or the best (`optimistic`) or the
    worst (`pessimistic`) of them; scores from the findings. This happens after all other rules have run.

    ## Limits and their sources
    Those of the configuration.

    ## When to ignore it
    When the limit is out of date: change it where it stands.

    ## Example
    ```python
    gradcheck.scan(model, batches, config={"assert": {"stat:loss.final": {"max": 0.1}}})
    ```

    ## Use instead
    ```python
    gradcheck.scan(model, batches, config={"assert": {"stat:loss.final": ["warning", {"max": 1.8}]}})
    ```

    ## References
    Lighthouse CI's assertions, https://github.com/GoogleChrome/lighthouse-ci/blob/main/docs/configuration.md#assert
    """
    return not_applicable("no assertions in the configuration")


@rule("META003", "stale-baseline", up_to="warning")
def stale_baseline(m: Measurement, limits: Limits) -> Verdict:
    """An entry of the baseline whose finding is gone.

    ## What it finds
    Entries of the baseline file for which the run found nothing, although their rules ran.

    ## Why it matters
    An entry that outlived its finding hides the next one that looks like it. It fails the run, unless `--allow-stale` is given.

    ## How it is measured
    The findings are compared with the entries after all other rules have run. Entries of targets that were not scanned,
    and of rules that were not selected or came to no verdict, are left alone.

    ## Limits and their sources
    None.

    ## When to ignore it
    When a finding comes and goes with the machine: pass `--allow-stale`, or scan more seeds.

    ## Example
    ```python
    self.act = nn.GELU()  # the baseline lists dead-units for the nn.ReLU() that stood here
    ```

    ## Use instead
    ```python
    self.act = nn.GELU()  # and `gradcheck baseline prune` has removed the entry
    ```

    ## References
    ESLint's bulk suppressions (https://eslint.org/docs/latest/use/suppressions) treat unused entries the same way.
    """
    return not_applicable("no baseline")
