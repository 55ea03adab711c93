"""Treatments of the user's training loop: edits of the source alone. They are proved by running and judging the edited script."""

from gradcheck.remedies.definition import RemedyDefinition, wiring
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Fix
from gradcheck.types.measurement import Measurement

_RECIPES = "PyTorch documentation, Automatic Mixed Precision examples"


def _of_loop(name: str, title: str, citation: str) -> RemedyDefinition:
    @wiring(name, title, citation, loop=True)
    def mending(finding: Finding | None, m: Measurement) -> list[Fix]:
        """What the finding proposes, where a loop was seen; what is to be edited follows from the places in `m.loop`."""
        text = next((r.text for r in finding.remedies if r.name == name), None) if finding is not None else None
        return [mending.fix(text, finding)] if text is not None and m.loop is not None else []

    return mending


REMEDIES = (
    _of_loop("clear-gradients", "clearing of gradients", "PyTorch documentation, torch.optim.Optimizer.zero_grad"),
    _of_loop("call-step", "the optimizer's step", "PyTorch documentation, torch.optim, Taking an optimization step"),
    _of_loop("move-clipping", "place of gradient clipping", "PyTorch documentation, torch.nn.utils.clip_grad_norm_"),
    _of_loop("complete-scaler", "missing calls of a GradScaler", f"{_RECIPES}, typical mixed precision training"),
    _of_loop("scale-loss", "average over accumulated batches", f"{_RECIPES}, gradient accumulation"),
    _of_loop("restore-training-mode", "training mode after an evaluation", "PyTorch documentation, torch.nn.Module.eval"),
    _of_loop("keep-tensor", "the tensor in place of its numbers", "PyTorch documentation, Autograd mechanics"),
    _of_loop(
        "detach-kept",
        "numbers kept without their graph",
        "PyTorch documentation, Frequently asked questions, my model reports out of memory",
    ),
    _of_loop("keep-optimizer", "one optimizer for the whole training", "PyTorch documentation, torch.optim, Constructing it"),
    _of_loop("keep-scheduler", "one schedule for the whole training", "PyTorch documentation, torch.optim, How to adjust learning rate"),
    _of_loop("follow-buffers", "an average of the buffers, too", "PyTorch documentation, torch.optim.swa_utils.AveragedModel"),
    _of_loop("weigh-micro-batches", "elements that weigh alike", "Transformers documentation, Trainer, num_items_in_batch"),
    _of_loop("next-batch", "a new batch for each step", "PyTorch documentation, torch.utils.data.DataLoader"),
    _of_loop("step-schedule-per-batch", "a schedule stepped with each batch", "PyTorch documentation, torch.optim.lr_scheduler.OneCycleLR"),
    _of_loop(
        "step-schedule-per-epoch", "a schedule stepped once an epoch", "PyTorch documentation, torch.optim, How to adjust learning rate"
    ),
    _of_loop("causal-attention", "a causal mask", "PyTorch documentation, torch.nn.functional.scaled_dot_product_attention"),
    _of_loop("merge-heads", "heads merged place by place", "Vaswani et al. 2017, Attention is all you need, section 3.2.2"),
    _of_loop("shift-labels", "labels that are one token ahead", "Transformers documentation, labels of causal language models"),
    _of_loop("supervise-targets", "targets that count", "PyTorch documentation, torch.nn.functional.cross_entropy, ignore_index"),
    _of_loop("rank-stabilised-scale", "alpha over the root of the rank", "Kalajdzievski 2023, A rank stabilization scaling factor"),
    _of_loop("change-schedule", "a schedule over epochs", "PyTorch documentation, torch.optim, How to adjust learning rate"),
)
