"""Data at the first trained layers that the model has transformed on the way: a step's number or an index as a float."""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from gradcheck.types.location import Location
from gradcheck.types.measurement import Entering
from gradcheck.workload.device import on_host

_CHANNELS = {F.conv1d: 1, F.conv2d: 1, F.conv3d: 1}  # axis of the features, where it is not the last one
TAKERS = {F.linear, *_CHANNELS}
FEWEST = 8  # values of a feature


class Entrances:
    """Calls of linear and convolution layers whose weights are trained and whose input carries no gradient."""

    def __init__(self) -> None:
        self._seen: dict[str, tuple[torch.Tensor, tuple[int, ...], Location | None]] = {}  # the numbers of `read`, where they lie
        self._frozen = False  # a layer that is not trained has run: its outputs are not data

    @torch.no_grad()
    def look(self, function: Any, args: Any, layer: str, site: Callable[[], Location | None]) -> None:
        if len(args) < 2 or self._frozen or not all(isinstance(a, torch.Tensor) for a in args[:2]):
            return
        given, weight = args[0], args[1]
        if not weight.requires_grad and not given.requires_grad:
            self._frozen = True
        plain = given.is_floating_point() and given.layout is torch.strided and given.dim() > 1
        if layer in self._seen or given.requires_grad or not weight.requires_grad or not plain:
            return
        features = given.detach().float().movedim(_CHANNELS.get(function, -1), -1).flatten(0, -2)
        if len(features) < FEWEST:
            return
        stds = features.std(0, correction=0)
        loudest, place = stds.max(0)
        column = features.index_select(1, place.reshape(1)).squeeze(1)
        share = (stds > loudest / 10).float().mean()
        numbers = torch.stack([torch.isfinite(features).all().float(), loudest, column.mean(), column.min(), column.max(), share])
        self._seen[layer] = numbers, tuple(given.shape), site()

    def read(self) -> tuple[Entering, ...]:
        found = []
        numbers = on_host([n for n, _, _ in self._seen.values()])
        for (layer, (_, shape, site)), read in zip(self._seen.items(), numbers, strict=True):
            finite, *rest = read.tolist()
            found += [Entering(layer, site, shape, *rest)] if finite else []
        return tuple(found)
