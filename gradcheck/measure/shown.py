"""Which places of the user's source a report may show: those that a measurement points at."""

from collections.abc import Collection, Mapping
from typing import Any

from gradcheck.measure.first_step import FirstStep
from gradcheck.types.location import Location
from gradcheck.workload.workload import Workload


def shown_places(
    w: Workload, sites: Mapping[str, Location | None], first: FirstStep, sited: Collection[Any], values: Mapping[str, Any]
) -> list[Location]:
    """`sites`: of the modules, by name; `sited`: records with a site; `values`: what the checks found, by its name in a Measurement."""
    every = (
        *sited,
        *first.losses,
        *first.softmaxes,
        *first.similarities,
        *first.mixes,
        *first.scrambles,
        *first.loss_operations,
        *first.differences,
        *first.entering,
        *first.hidden,
        *first.zero_derivatives,
        *values.get("attentions", ()),
        *values.get("idle_terms", ()),
        *(values.get("routers") or ()),
        *(v for name in ("dependence", "derivatives", "padding", "embeddings") if (v := values.get(name)) is not None),
    )
    sequence, pair = values.get("sequence"), values.get("imbalance")
    compared = (pair.strong, pair.weak) if pair is not None else ()
    made = (w.sites.get(id(x)) for x in (*w.model.parameters(), w.optimizer))
    places = (*(x.site for x in (*every, *compared)), *sites.values(), *made, *(sequence.sites if sequence is not None else ()))
    return [place for place in places if place is not None]
