import itertools
import re
from collections.abc import Iterable, Sequence

from gradcheck.analysis.wording import layers_in_words, percent
from gradcheck.types.finding import Evidence, Finding, Remedy
from gradcheck.types.measurement import Measurement
from gradcheck.types.rule import Limit, Limits, Verdict, found, not_applicable, required, rule
from gradcheck.types.structure import Adaptation, Adapter

FEWEST = 3  # layers of one name outside of repeated blocks, of which some have an adapter and some have none


@rule(
    "TUNE001",
    up_to="warning",
    needs=("adapters", "optimizer"),
    limits={
        "left_out": Limit(0, "layers", "a matter of definition: layers that differ by their index only, adapted below one that is not"),
        "not_trained": Limit(0, "adapters", "a matter of definition"),
        "smallest_share": Limit(
            0.05, "of the frozen layers", "a choice of one kind of seven in half of the blocks is 7 %; so are query and value by 8 experts"
        ),
    },
    explains=("GRAPH003",),
)
def adapter_coverage(m: Measurement, limits: Limits) -> Verdict:
    """Adapters that are not trained, or that a name pattern put on some of the layers that are alike and not on others.

    ## What it finds
    Models with frozen weights and adapters (LoRA of PEFT or written by hand, and the other kinds of PEFT) in which adapters are
    frozen, switched off, merged, or not in the optimizer; in which layers that differ from adapted ones only by their index
    have no adapter; or in which hardly any layer has one. Adapters are told from structure: a frozen weight and beside it, in
    the same module, two factors of a lower rank whose product has its shape; or from the attributes of PEFT's layers.

    ## Why it matters
    The frozen weights stay as they are: what has no adapter in training does not learn. The loss falls anyway, thanks to the
    head or to the remaining layers.

    ## How it is measured
    The adapters in use are listed with whether any of their parameters requires a gradient and the optimizer holds it. Frozen linear
    layers that ran and are not adapted are grouped with the adapted ones by their names without indices and by their shapes.

    ## Limits and their sources
    `not-trained` 0 and `left-out` 0: one is enough. Left out are layers of repeated blocks, and of three or more others, when the
    adapted ones are not the last ones (adapting the top layers is a choice) nor evenly spaced (every second one, or three or more).
    Which kinds of layers are adapted is a choice, too: PEFT adapts query and value by default. Below `smallest-share` 5 % of ten or
    more frozen layers it is advice. Calibrated on 26 healthy models, on which it says nothing: six with LoRA written by hand (around a
    layer, as a subclass of it, with layers as factors, on query and value, on all layers, on the top half), and 20 of PEFT 0.21 (Llama,
    GPT-2, RoBERTa, T5, ViT, Mixtral; LoRA by default, on all layers, on the top layers and on an embedding, two adapters of which one
    is used, DoRA, rsLoRA, AdaLoRA, IA3, LoHa, LoKr, VeRA, OFT, prompt and LayerNorm tuning).

    ## When to ignore it
    When adapters that were trained before are kept fixed on purpose, or some layers of a kind are left alone on purpose.

    ## Example
    ```python
    for name, layer in list(model.named_modules()):
        if re.match(r"layers\\.1.*q_proj", name):  # layers 1, 10 and 11
            replace(model, name, LoRALinear(layer))
    ```

    ## Use instead
    ```python
    for name, layer in list(model.named_modules()):
        if name.endswith("q_proj"):
            replace(model, name, LoRALinear(layer))
    ```

    ## References
    Hu et al. 2021, LoRA: Low-Rank Adaptation of Large Language Models; Dettmers et al. 2023, QLoRA (section 4: adapters on all
    layers are what matches full fine-tuning); PEFT documentation: `target_modules`, `is_trainable`, `disable_adapter_layers`.
    """
    adaptation = required(m.adaptation, not_applicable("no frozen weight has an adapter"))
    off = [a for a in adaptation.adapters if a.off]
    frozen = [a for a in adaptation.adapters if not a.off and not a.trainable and not _is_copy(a, adaptation.adapters)]
    outside = [a for a in adaptation.adapters if a.trainable and not a.off and _outside(m, a)]
    findings = []
    states = (
        (off, "switched off, or merged into the weights", SWITCH),
        (frozen, "frozen", UNFREEZE),
        (outside, "in no group of the optimizer", ADD),
    )
    for group, state, remedy in states:
        if len(group) > limits["not_trained"]:
            findings.append(_untrained(adaptation, group, state, remedy, limits["not_trained"]))
    findings += _left_out(m, adaptation, limits["left_out"])
    return findings or _scarce(m, adaptation, limits["smallest_share"])


SWITCH = Remedy("train-adapters", "switch them on for training: enable_adapter_layers(), unmerge_adapter()")
UNFREEZE = Remedy(
    "train-adapters",
    "let them be trained: PeftModel.from_pretrained(..., is_trainable=True), or requires_grad_(True) on their parameters, after the "
    "model was frozen and before the optimizer is made",
)
ADD = Remedy("add-to-optimizer", "make the optimizer after the adapters, from the parameters that require a gradient", "safe")


def _is_copy(a: Adapter, others: Iterable[Adapter]) -> bool:
    """Whether it is that of a frozen copy of the model, such as a reference or a teacher, beside the model that is trained."""
    tail = a.layer.partition(".")[2]
    return any(o.trainable and o.shape == a.shape and o.layer.partition(".")[2] == tail for o in others)


def _outside(m: Measurement, a: Adapter) -> bool:
    held = [p for name in a.factors if (p := m.parameter(name)) is not None and p.trainable]
    return m.optimizer.given and bool(held) and all(p.groups == 0 for p in held)


def _untrained(adaptation: Adaptation, group: Sequence[Adapter], state: str, remedy: Remedy, limit: float) -> Finding:
    count, names = len(adaptation.adapters), [a.layer for a in group]
    which = f"all {count} adapters" if len(group) == count > 1 else f"{len(group)} of {count} adapters"
    be = "is" if count == 1 else "are"
    message = f"{which} {be} {state}: {layers_in_words(names)} (limit {limit:.0f}). What they adapt is frozen, too, and does not learn"
    evidence = Evidence(f"adapters {state}", len(group), limit, ">", f"of {count}", names[0])
    return found("warning", message, layers=names, location=group[0].site, evidence=evidence, remedies=remedy)


# ------------------------------------------------------------------------------- left out


def _left_out(m: Measurement, adaptation: Adaptation, limit: float) -> list[Finding]:
    """One finding for all names of which some layers have an adapter and others do not."""
    groups: dict[tuple[str, tuple[int, ...]], dict[str, bool]] = {}
    for a in adaptation.adapters:
        groups.setdefault((_without_indices(a.layer), a.shape), {})[a.layer] = True
    for name, shape in _ran(m, adaptation):
        groups.setdefault((_without_indices(name), shape), {}).setdefault(name, False)
    partial = []
    for (role, _), group in groups.items():
        names = sorted(group, key=_indices)
        flags = [group[n] for n in names]
        enough = len(names) >= (2 if re.search(r"\.\*\.", f".{role}") else FEWEST)
        if enough and any(flags) and not all(flags) and not _is_choice(flags):
            partial.append((names, flags))
    missing = [n for names, flags in partial for n, adapted in zip(names, flags, strict=True) if not adapted]
    if len(missing) <= limit:
        return []
    adapted = [n for names, flags in partial for n, done in zip(names, flags, strict=True) if done]
    total = len(missing) + len(adapted)
    message = (
        f"{layers_in_words(adapted)} have adapters, {len(missing)} of {total} layers of the same names and shapes do not "
        f"(limit {limit:.0f}): {layers_in_words(missing)} stay as they are. A pattern of names may fit only some of them"
    )
    site = next((a.site for a in adaptation.adapters if a.layer == adapted[0]), None)
    evidence = Evidence("layers left out", len(missing), limit, ">", f"of {total} that differ by their index only", missing[0])
    text = f"adapt {layers_in_words(missing)}, too"
    return [found("warning", message, layers=missing, location=site, evidence=evidence, remedies=Remedy("adapt-siblings", text))]


def _without_indices(name: str) -> str:
    return re.sub(r"\d+", "*", name)


def _indices(name: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", name))


def _is_choice(flags: Sequence[bool]) -> bool:
    """Whether the adapted ones are the last ones, or evenly spaced over all."""
    first = flags.index(True)
    if all(flags[first:]):
        return True
    places = [i for i, flag in enumerate(flags) if flag]
    gaps = {b - a for a, b in itertools.pairwise(places)}
    even = len(gaps) == 1 and (gap := gaps.pop()) > 1 and first < gap and places[-1] >= len(flags) - gap
    return even and (gap == 2 or len(places) > 2)  # any two layers are some distance apart


def _ran(m: Measurement, adaptation: Adaptation) -> list[tuple[str, tuple[int, ...]]]:
    return [(name, shape) for name, shape in adaptation.bare if m.layer(name) is not None]


MANY = 10  # frozen layers; of fewer, one that is adapted is no small share


def _scarce(m: Measurement, adaptation: Adaptation, limit: float) -> list[Finding]:
    bare, adapted = [name for name, _ in _ran(m, adaptation)], [a.layer for a in adaptation.adapters]
    total = len(bare) + len(adapted)
    share = len(adapted) / total
    if total < MANY or share >= limit:
        return []
    message = (
        f"{len(adapted)} of {total} linear layers with frozen weights ({percent(share)}, limit {percent(limit)}) have an adapter: "
        f"{layers_in_words(adapted)}. The others stay as they are"
    )
    evidence = Evidence("layers with an adapter", share, limit, "<", "of the frozen linear layers")
    remedy = Remedy("adapt-siblings", "adapt the other linear layers, too (PEFT: target_modules='all-linear')")
    return [found("info", message, layers=adapted, location=adaptation.adapters[0].site, evidence=evidence, remedies=remedy)]
