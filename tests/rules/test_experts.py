"""MOE001 on literal measurements."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from gradcheck.rules.experts.router_collapse import router_collapse
from gradcheck.types.measurement import Measurement
from gradcheck.types.structure import Router
from tests.literals import location, measurement
from tests.rules.verdicts import findings, no_verdict, only, severities


def routed(loads: tuple[float, ...], **overrides: Any) -> Measurement:
    values: dict[str, Any] = {"layer": "moe", "experts": len(loads), "chosen": 1, "tokens": 1024, "start_loads": loads, "entropy": 0.5}
    return measurement(routers=(Router(**values | {"loads": loads, "site": location(20)} | overrides),))


def one_takes(share: float) -> tuple[float, ...]:
    return (share, *((1 - share) / 3,) * 3)


class TestRouterCollapse:
    @pytest.mark.parametrize(
        ("share", "expected"), [(0.89, []), (0.91, ["warning"]), (0.98, ["warning"]), (0.995, ["error"]), (1.0, ["error"])]
    )
    def test_the_share_of_the_busiest(self, share, expected):
        assert severities(router_collapse, routed(one_takes(share))) == expected

    def test_as_many_as_are_chosen_count_together(self):
        assert severities(router_collapse, routed((0.5, 0.5, 0.0, 0.0), chosen=2)) == ["error"]
        assert findings(router_collapse, routed((0.5, 0.5, 0.0), chosen=2)) == []  # one of three at most is left out

    @pytest.mark.parametrize(("idle", "expected"), [(7, []), (8, ["warning"])])
    def test_experts_without_a_token(self, idle, expected):
        busy = 16 - idle
        assert severities(router_collapse, routed((1 / busy,) * busy + (0.0,) * idle)) == expected

    @pytest.mark.parametrize(("steps", "expected"), [(49, ["warning"]), (50, ["error"])])
    def test_a_balancing_term_needs_time(self, steps, expected):
        assert severities(router_collapse, replace(routed(one_takes(1.0)), steps=steps)) == expected

    @pytest.mark.parametrize(("tokens", "judged"), [(199, False), (200, True)])
    def test_too_few_tokens_say_nothing(self, tokens, judged):
        m = routed(one_takes(1.0), tokens=tokens)
        assert severities(router_collapse, m) == ["error"] if judged else no_verdict(router_collapse, m) == "not-measured"

    def test_the_busiest_of_many_need_fewer_tokens(self):
        assert severities(router_collapse, routed((1.0, *(0.0,) * 7), tokens=200)) == ["error"]
        assert no_verdict(router_collapse, routed((1.0, *(0.0,) * 7), tokens=199)) == "not-measured"
        assert no_verdict(router_collapse, routed((0.5, 0.5, *(0.0,) * 6), tokens=200)) == "not-measured"

    def test_it_points_at_the_router(self):
        f = only(router_collapse, routed(one_takes(1.0)))
        assert f.location == location(20) and f.layers == ("moe",) and "3 of 4 get nothing" in f.message

    @pytest.mark.parametrize("routers", [None, ()])
    def test_without_a_router_there_is_nothing_to_judge(self, routers):
        assert no_verdict(router_collapse, measurement(routers=routers)) == "not-applicable"
