"""The rules about adapters on literal measurements."""

from __future__ import annotations

from typing import Any

import pytest

from gradcheck.rules.adapters.adapter_coverage import adapter_coverage
from gradcheck.rules.adapters.adapter_scale import adapter_scale
from gradcheck.types.measurement import Measurement
from gradcheck.types.structure import Adaptation, Adapter
from tests.literals import layer, location, measurement, optimizer, parameter
from tests.rules.verdicts import findings, no_verdict, only, severities

SHAPE = (64, 64)


def adapter(name: str, **overrides: Any) -> Adapter:
    values: dict[str, Any] = {
        "shape": SHAPE,
        "factors": (f"{name}.down", f"{name}.up"),
        "trainable": True,
        "rank": 8,
        "site": location(30),
    }
    return Adapter(name, **values | overrides)


def adapted(*adapters: Adapter, bare: tuple[str, ...] = (), **overrides: Any) -> Measurement:
    factors = [parameter(f, shape=(8, 64), trainable=a.trainable) for a in adapters for f in a.factors]
    values: dict[str, Any] = {
        "adaptation": Adaptation(adapters, tuple((name, SHAPE) for name in bare)),
        "layers": tuple(layer(name) for name in bare),
        "parameters": tuple(factors),
    }
    return measurement(**values | overrides)


def blocks(pattern: str, of: str = "blocks.{}.q") -> Measurement:
    """x: adapted, -: frozen without adapter."""
    names = [of.format(i) for i in range(len(pattern))]
    bare = tuple(n for n, c in zip(names, pattern, strict=True) if c == "-")
    return adapted(*(adapter(n) for n, c in zip(names, pattern, strict=True) if c == "x"), bare=bare)


class TestAdapterCoverage:
    def test_without_adapters_there_is_nothing_to_say(self):
        assert no_verdict(adapter_coverage, measurement()) == "not-applicable"

    @pytest.mark.parametrize(
        ("pattern", "expected"),
        [
            ("xxxx", []),
            ("-x--------xx", ["warning"]),  # layers 1, 10 and 11
            ("x---", ["warning"]),
            ("x-", ["warning"]),
            ("--xx", []),  # the top layers are a choice
            ("x-x-x-", []),  # every other one, too
            ("-x-x-x", []),
            ("x--x--x", []),
            ("x--x--", ["warning"]),  # two are no spacing
            ("x-x-", []),
            ("x-xxx", ["warning"]),
        ],
    )
    def test_layers_that_differ_by_their_index(self, pattern, expected):
        assert severities(adapter_coverage, blocks(pattern)) == expected

    def test_numbers_outside_of_blocks_need_three_layers(self):
        assert severities(adapter_coverage, blocks("x-", of="fc{}")) == []
        assert severities(adapter_coverage, blocks("x--", of="fc{}")) == ["warning"]

    def test_which_kinds_of_layers_are_adapted_is_a_choice(self):
        m = adapted(*(adapter(f"blocks.{i}.q") for i in range(4)), bare=tuple(f"blocks.{i}.k" for i in range(4)))
        assert findings(adapter_coverage, m) == []

    def test_layers_of_other_shapes_and_layers_that_did_not_run_are_no_siblings(self):
        m = adapted(adapter("blocks.0.q", shape=(64, 32)), bare=("blocks.1.q", "blocks.2.q"))
        assert findings(adapter_coverage, m) == []
        m = adapted(adapter("blocks.0.q"), bare=("blocks.1.q", "blocks.2.q"), layers=())
        assert findings(adapter_coverage, m) == []

    @pytest.mark.parametrize(
        ("overrides", "words"), [({"trainable": False}, "frozen"), ({"off": True}, "switched off"), ({}, None)], ids=str
    )
    def test_adapters_out_of_training(self, overrides, words):
        m = adapted(adapter("a.fc", **overrides), adapter("a.out"))
        if words is None:
            assert findings(adapter_coverage, m) == []
        else:
            found = only(adapter_coverage, m)
            assert found.severity == "warning" and f"1 of 2 adapters are {words}" in found.message and found.location == location(30)

    def test_a_frozen_copy_beside_the_model_is_meant(self):
        m = adapted(adapter("policy.fc"), adapter("reference.fc", trainable=False))
        assert findings(adapter_coverage, m) == []

    @pytest.mark.parametrize(("groups", "given", "expected"), [(0, True, ["warning"]), (1, True, []), (0, False, [])])
    def test_adapters_outside_of_the_optimizer(self, groups, given, expected):
        m = adapted(
            adapter("fc"),
            parameters=tuple(parameter(f"fc.{n}", groups=groups) for n in ("down", "up")),
            optimizer=optimizer(given=given),
        )
        assert severities(adapter_coverage, m) == expected

    @pytest.mark.parametrize(("others", "expected"), [(19, []), (20, ["info"])])
    def test_next_to_no_layer_has_one(self, others, expected):
        kinds = "abcdefghijklmnopqrst"
        m = adapted(adapter("q"), bare=tuple(f"net.{kinds[i]}" for i in range(others)))
        assert severities(adapter_coverage, m) == expected


class TestAdapterScale:
    @pytest.mark.parametrize(
        ("rank", "scale", "expected"),
        [(64, 0.25, ["info"]), (64, 0.26, []), (63, 0.25, []), (256, 16 / 256, ["info"]), (256, 16 / 16, []), (8, 0.1, [])],
    )
    def test_alpha_over_a_high_rank(self, rank, scale, expected):
        m = adapted(adapter("q", rank=rank, scale=scale, size=0.2))
        assert severities(adapter_scale, m) == expected

    @pytest.mark.parametrize(("sizes", "expected"), [((2.9, 2.9, 9.0), []), ((0.1, 3.1, 3.2), ["info"])])
    def test_adapters_that_outweigh_their_weights(self, sizes, expected):
        m = adapted(*(adapter(f"blocks.{i}.q", scale=1.0, size=size) for i, size in enumerate(sizes)))
        assert severities(adapter_scale, m) == expected

    def test_other_kinds_of_adapters_have_no_scale(self):
        assert no_verdict(adapter_scale, adapted(adapter("q"))) == "not-measured"
        assert no_verdict(adapter_scale, measurement()) == "not-applicable"
