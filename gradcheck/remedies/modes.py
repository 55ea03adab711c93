"""Treatments of normalization layers that are in the wrong mode, or average over the wrong time."""

from __future__ import annotations

from typing import Any

import torch

from gradcheck.nouns.measurement import Measurement
from gradcheck.nouns.treatment import Prescription, Setting
from gradcheck.nouns.verdict import Finding
from gradcheck.remedies.prescribing import listed
from gradcheck.remedies.protocol import Inapplicable, Patient, Treatment
from gradcheck.remedies.surgery import module_at
from gradcheck.target.rng import preserve_rng

MOMENTUM = 0.1  # torch's default: weight of the newest batch


def prescribe_mode(finding: Finding | None, m: Measurement) -> list[Prescription]:
    """Only for layers of the model; a loop that leaves the whole model in evaluation mode is the user's to change."""
    layers = finding.layers if finding is not None and m.loop is None else ()
    if not layers:
        return []
    return [MODE.prescription(f"leave {listed(layers)} in training mode while training", finding, layers=layers)]


def put_into_training(patient: Patient, p: Prescription) -> None:
    modules = [module_at(patient, name) for name in p.layers]
    for module in modules:
        module.train()
    twin = patient.copy()
    with preserve_rng(), torch.no_grad():
        twin.workload.training_step(twin.model, twin.workload.batches[0])
    if not all(module_at(twin, name).training for name in p.layers):
        raise Inapplicable("the forward method itself puts them into evaluation mode")


def prescribe_momentum(finding: Finding | None, m: Measurement) -> list[Prescription]:
    layers = finding.layers if finding is not None else ()
    settings: dict[str, Setting] = {"momentum": MOMENTUM}
    text = f"set the momentum of {listed(layers)} to {MOMENTUM:g}, torch's default"
    return [DEFAULT.prescription(text, finding, layers=layers, settings=settings)] if layers else []


def set_momentum(patient: Patient, p: Prescription) -> None:
    for name in p.layers:
        module: Any = module_at(patient, name)
        if not hasattr(module, "momentum"):
            raise Inapplicable(f"{name} has no momentum")
        module.momentum = float(p.settings["momentum"])


MODE = Treatment(
    "training-mode",
    "training mode of normalizations",
    "wiring",
    "safe",
    "Ioffe and Szegedy 2015, Batch Normalization, section 3.1",
    prescribe_mode,
    put_into_training,
)
DEFAULT = Treatment(
    "default-momentum",
    "usual momentum of running statistics",
    "wiring",
    "safe",
    "Ioffe and Szegedy 2015, Batch Normalization, section 3.1",
    prescribe_momentum,
    set_momentum,
)

TREATMENTS = (MODE, DEFAULT)
