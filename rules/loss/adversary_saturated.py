from gradcheck.analysis.wording import number
from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule


@rule(
    "LOSS007",
    up_to="warning",
    needs=("loop",),
    limits={
        "loss": Limit(0.01, "of the loss at the start", "heuristic: nothing is left to win"),
        "gradient": Limit(
            0.04, "of the gradient at the start", "measured: 0.003 to 0.021 where one has won, 0.079 and up where not; see the page"
        ),
    },
    explains=("GRAD001", "GRAD004", "LOSS005", "OPT002"),
)
def adversary_saturated(m: Measurement, limits: Limits) -> Verdict:
    """Of two opposed trainings one has won: its loss is at zero, and nothing reaches the other one.

    ## What it finds
    A generator whose discriminator recognises all of its samples, and whose loss is flat there, as that of the original minimax
    game is: the discriminator's loss is at zero, and the generator's gradient has vanished.

    ## Why it matters
    The generator gets no gradient to catch up by. Both losses stand still, and look as if the training had converged.

    ## How it is measured
    While the script runs, the losses of two optimizers that step in turns are followed where the loss of the one goes through the weights
    that the other one trains, and the size of the one's gradient before each of its steps (entries of four tensors). The medians
    of the first ten steps and of the last ten are compared; of the gradient the largest of the first ten.

    ## Limits and their sources
    The other one's loss, never negative, is at most `loss` 0.01 of what it was, this one's gradient at most `gradient` 0.04 of
    what it was, and this one's loss has not fallen. Calibration, points on a circle, 200 steps followed and 3000 trained: a
    minimax loss against a hundred times the generator's rate ends at a loss of 0.0002 and a gradient of 0.003 of the start, and
    never reaches the circle. In the same game with a loss that does not saturate the discriminator's loss is at 0.0005, but the
    gradient at 15 times the start: it recovers, and is not reported. In ten other games and actor-critic trainings (minimax,
    non-saturating, hinge, squares, distances with a penalty, a smooth label, two steps of the one for one of the other, a
    deterministic actor, one without any reward) the gradient is at 0.079 of the start or above. Held out, on digits: five
    healthy games at 0.44 and above, three that are lost (minimax, linear in the probability, an adversarial code) at 0.004 to
    0.021; one whose loss is cut off at 0.1 keeps 0.2 of its gradient, and is not reported. Held out by `benchmarks/silent.py`,
    on moons, blobs, digits, a roll and a table: of 24 healthy games none is reported, of 12 lost ones all are.

    ## When to ignore it
    At the start of a training whose generator is still to be trained by another loss.

    ## Example
    ```python
    loss = torch.log(1 - discriminator(generator(noise))).mean()
    ```

    ## Use instead
    ```python
    loss = -torch.log(discriminator(generator(noise))).mean()
    ```

    ## References
    Goodfellow et al. 2014, Generative adversarial nets, section 3; Arjovsky and Bottou 2017, Towards principled methods for
    training generative adversarial networks; soumith/ganhacks#36 and #2; simontomaskarlsson/GAN-MRI#11.
    """
    loop = script(m)
    unseen = "no loss goes through weights that another optimizer trains, for long enough to be followed"
    a = required(loop.adversary, not_applicable(unseen))
    if a.loss_start <= 0 or a.loss_end < 0 or a.gradient_start <= 0 or a.own_end < a.own_start:
        return []
    loss, gradient = a.loss_end / a.loss_start, a.gradient_end / a.gradient_start
    if loss > limits["loss"] or gradient > limits["gradient"]:
        return []
    message = (
        f"what {a.name or 'the other optimizer'} trains has won: in {a.steps} steps its loss went to {number(loss)} of what it was (limit "
        f"{number(limits['loss'])}), and the gradient here to {number(gradient)} of what it was (limit {number(limits['gradient'])}), "
        f"while the loss went from {number(a.own_start)} to {number(a.own_end)}"
    )
    evidence = [
        Evidence("loss of the other training", loss, limits["loss"], "<=", "of that at the start"),
        Evidence("gradient", gradient, limits["gradient"], "<=", "of that at the start"),
    ]
    text = "use a loss that does not saturate, or a lower rate or fewer steps for the other training"
    return [found("warning", message, location=loop.backward_site, evidence=evidence, remedies=Remedy("balance-adversaries", text))]
