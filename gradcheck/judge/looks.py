"""What rules can ask to be measured, in the user's words."""

from collections.abc import Mapping

from gradcheck.types.rule import Need

LOOKS: Mapping[Need, str] = {
    "signals": "the outputs of the layers and the gradients at them",
    "units": "the activity of the units",
    "similarity": "how alike the samples become inside the model",
    "parameters": "the weights, their gradients and their updates",
    "graph": "how the layers are connected up to the loss",
    "reach": "which parameters the loss reaches",
    "optimizer": "the settings of the optimizer",
    "losses": "the calls of loss functions",
    "data": "the inputs and targets",
    "probe": "the course of the training",
    "numerics": "where NaN and infinity come from",
    "derivatives": "the gradient against finite differences",
    "dependence": "whether the output depends on the input, and on other samples",
    "sequence": "what of a sequence is predicted from what",
    "padding": "what padding changes in the output",
    "routing": "which experts a router chooses",
    "adapters": "which frozen weights have an adapter",
    "recurrence": "the gradient over time steps",
    "samples": "the gradients of single samples",
    "attention": "the attention weights",
    "precision": "gradients that are lost in float16",
    "validation": "the loss on validation data",
    "baseline": "what a linear model makes of the data",
    "sharpness": "the sharpness of the loss",
    "critical": "the rate at which the loss rises along the own update",
    "terms": "what the loss is a sum of",
    "balance": "how much each term of the loss weighs",
    "embeddings": "how far apart the embeddings are",
    "functional_step": "how far the first update moves the output",
    "epsilon": "training with the usual epsilon",
    "clipping": "the effect of gradient clipping",
    "regularization": "training without regularization",
    "normalization": "the statistics of batch normalization",
    "log": "the log of a finished run",
    "loop": "the training loop",
    "gauges": "the gauges of a watched run",
}


def in_words(what: str) -> str:
    """The user's words for a need; layers and the like are in words already."""
    return next((text for need, text in LOOKS.items() if need == what), what)
