"""Nets side by side are judged one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gradcheck.analysis.depth import nets, over_nets
from gradcheck.rules.activation.deep_sigmoid import deep_sigmoid
from gradcheck.rules.gradient.vanishing_gradient import vanishing_gradient
from gradcheck.rules.normalization.missing_normalization import missing_normalization
from gradcheck.types.rule import found, not_applicable
from tests.literals import layer, location, measurement, norm, snapshots, stalled
from tests.rules.verdicts import no_verdict, severities


def towers(count: int, sizes, *, line: int = 10, **overrides):
    """`count` nets made by one line, each with layers whose gradients have these sizes, and a head."""
    layers = []
    for t in range(count):
        for i, size in enumerate(sizes):
            at = {"order": len(layers), "nets": (t,), "depth": i + 1, "site": location(line), "snapshots": snapshots(1.0, size)}
            layers.append(layer(f"{t}.{i}", **at, **overrides))
        layers.append(layer(f"{t}.head", order=len(layers), nets=(t,), head=True, depth=len(sizes) + 1))
    return tuple(layers)


def test_each_net_has_its_own_layers_and_norms():
    m = measurement(layers=(*towers(2, [1.0] * 3), layer("loss", "other", order=99)), norms=(norm("0.1"), norm("elsewhere")))
    one, other = nets(m)
    assert [x.name for x in one.layers] == ["0.0", "0.1", "0.2", "0.head", "loss"] and len(one.norms) == 2
    assert [x.name for x in other.layers] == ["1.0", "1.1", "1.2", "1.head", "loss"] and len(other.norms) == 1


def test_one_net_and_saved_runs_of_before_are_judged_whole():
    m = measurement()
    assert nets(m) == [m]


def test_towers_of_different_scale_are_no_chain():
    """Two layers each: the second tower's gradients are 8 decades smaller."""
    loud, quiet = towers(2, [1.0, 1.0])[:3], tuple(replace(x, snapshots=snapshots(1.0, 1e-8)) for x in towers(2, [1.0, 1.0])[3:])
    m = measurement(layers=(*quiet, *loud), probe=stalled())
    assert no_verdict(vanishing_gradient, m) == "not-applicable"
    chain = tuple(replace(x, order=i, nets=(), depth=None) for i, x in enumerate(m.layers))
    assert severities(vanishing_gradient, replace(m, layers=chain)) == ["error"]  # what was said of it


def test_nets_of_one_line_are_one_finding():
    m = measurement(layers=towers(3, [10.0**-i for i in range(6, 0, -1)]), probe=stalled())
    (finding,) = vanishing_gradient.check(m, {k: v.value for k, v in vanishing_gradient.limits.items()})
    assert "likewise in 2 more nets beside it" in finding.message and {"0.0", "1.0", "2.0"} <= set(finding.layers)


def test_ten_shallow_members_are_not_twenty_layers_in_a_row():
    m = measurement(layers=towers(10, [1e-3, 1.0]), probe=stalled())
    assert no_verdict(missing_normalization, m) == "not-applicable"


@pytest.mark.parametrize(("beside", "expected"), [(True, []), (False, ["warning"])])
def test_sigmoids_of_two_towers_are_not_stacked(beside, expected):
    layers = []
    for i in range(4):
        depth = i % 2 + 1 if beside else i + 1
        layers.append(layer(f"fc{i}", order=2 * i, depth=depth, activation="sigmoid"))
        layers.append(layer(f"act{i}", "activation", function="sigmoid", order=2 * i + 1, depth=depth))
    head = layer("head", order=20, head=True, depth=9)
    assert severities(deep_sigmoid, measurement(layers=(*layers, head))) == expected


def test_it_passed_where_one_net_did():
    m = measurement(layers=towers(2, [1.0] * 3))
    assert over_nets(m, lambda net: [] if net.layer("1.0") else not_applicable("no")) == []
    assert over_nets(m, lambda net: not_applicable("no")) == not_applicable("no")
    severe = over_nets(m, lambda net: [found("error" if net.layer("1.0") else "info", "x")])
    assert [f.severity for f in severe] == ["error"]
