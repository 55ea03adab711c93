"""Why a remedy is not safe: what it changes besides the training. A remedy that is not listed changes what the model computes."""

from collections.abc import Mapping

KEYS = "changes the architecture: old checkpoints do not fit"
COMPUTES = "changes what the model computes; checkpoints still load"
LOSS = "changes the loss: its values cannot be compared with the old ones"
_TRAINED = "changes what is trained"

_REASONS: Mapping[str, tuple[str, ...]] = {
    KEYS: (
        *("insert-normalization", "batch-normalization", "layer-normalization", "group-normalization", "insert-activation", "qk-norm"),
        *("add-residual", "pre-norm", "gated-recurrence", "smaller-network", "shallower-network", "trainable-scale"),
    ),
    "changes the architecture: load old checkpoints with strict=False": ("batch-free-normalization", "remove-bias", "move-dropout"),
    "adds keys to the checkpoint": ("register-modules",),
    LOSS: (
        *("replace-loss", "match-shapes", "average-term", "flip-sign", "guard-domain"),
        *("label-smoothing", "check-term", "asymmetric-sides"),
    ),
    "changes the loss and what the output means": ("remove-output-activation",),
    "changes the optimizer: its saved state does not fit": ("adaptive-optimizer",),
    _TRAINED: ("remove-detach", "remove-hook", "check-reward", "check-pairs", "check-arguments"),
    "changes the gradient": ("fix-backward",),
}
_BY_NAME = {name: reason for reason, names in _REASONS.items() for name in names}


def reason(name: str) -> str:
    """Of a remedy, for "unsafe: ..."."""
    return _BY_NAME.get(name, COMPUTES)
