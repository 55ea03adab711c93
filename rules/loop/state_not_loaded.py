from gradcheck.rules.graph.gradients_not_cleared import script
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.loop import LoopLoad
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limits, Verdict, found, not_measured, required, rule


@rule("LOOP014", up_to="warning", needs=("loop",))
def state_not_loaded(m: Measurement, limits: Limits) -> Verdict:
    """A `load_state_dict` leaves the module as it was.

    ## What it finds
    `load_state_dict(state, strict=False)` of a state none of whose names is one of the module's, as with `module.` or `model.`
    before each of them; and a module that is given its own tensors: a target network that is loaded from itself, or a "best"
    state that `state_dict()` only referred to and that has been trained on since.

    ## Why it matters
    The training starts from random weights where trained ones were meant, the target network stays what it was, the best weights are lost.
    Nothing says so.

    ## How it is measured
    The script is run. After each `load_state_dict` that it calls, the names of the state, and the places of its tensors in memory,
    are compared with the module's. What a later call loads into the same module is not reported.

    ## Limits and their sources
    None: no name in common, or all tensors the same (a matter of definition).

    ## When to ignore it
    When one state is offered to several modules, of which some are to take nothing.

    ## Example
    ```python
    encoder.load_state_dict(torch.load("classifier.pt"), strict=False)  # its names begin with "encoder."
    target.load_state_dict(target.state_dict())
    ```

    ## Use instead
    ```python
    state = torch.load("classifier.pt")
    encoder.load_state_dict({k.removeprefix("encoder."): v for k, v in state.items() if k.startswith("encoder.")})
    target.load_state_dict(online.state_dict())
    ```

    ## References
    PyTorch documentation: `torch.nn.Module.load_state_dict`, and "Saving and Loading Models", on `copy.deepcopy(model.state_dict())`.
    """
    return [_idle(load) for load in required(script(m).loads, not_measured("what is loaded into modules was not looked at"))]


def _idle(load: LoopLoad) -> Finding:
    if load.kind == "own":
        message = (
            f"load_state_dict gives the {load.module} its own tensors, all {load.entries} of them: nothing changes. state_dict() refers "
            "to the weights, which training goes on changing"
        )
        evidence = Evidence("tensors that come from another place in memory", 0, 0, "=", f"of {load.entries}")
        remedy = Remedy("check-arguments", "load the state of the other model, or keep copy.deepcopy(model.state_dict())")
    else:
        message = (
            f"load_state_dict(strict=False) loads nothing into the {load.module}: none of the {load.entries} names of the state is one of "
            f"its own ('{load.given}' for '{load.wanted}'), so that it stays as it was made"
        )
        evidence = Evidence("names that the state and the module have in common", 0, 0, "=", f"of {load.entries}")
        remedy = Remedy("check-arguments", "take the prefix off the names, and load with strict=True")
    return found("warning", message, location=load.site, evidence=evidence, remedies=remedy)
