"""Charts: their numbers against slow, obvious readings of the same picture."""

from __future__ import annotations

import io
import math
import re
from base64 import b64decode
from dataclasses import replace

import pytest
from PIL import Image

from gradcheck.report.html.axes import Axis, crossing, linear_axis, log_axis, path
from gradcheck.report.html.curves import BOTTOM, TALLEST, TOP, curve_chart, groups
from gradcheck.report.html.depth import LEFT, RIGHT, column, columns, course, depth_chart, gradient, last_gradients, shown_layers
from gradcheck.report.html.heatmap import BROKEN, FIRST, MISSING, ZERO, _coarse, data_url, encoded, heatmap, palette, statistics
from gradcheck.report.html.layers import BASE, chosen_layers, distribution, layer_table, spark_line
from gradcheck.report.html.layers import FIRST as FIRST_ROWS
from gradcheck.types.layers import Snapshot
from gradcheck.types.report import Report
from tests.literals import diverged, layer, measurement, run, snapshots, stalled, stats
from tests.report.html.pages import STEPS, Page, deep, faulty, healthy, treated


def corners(d):
    """Points of a path of M and l, one list a piece, in absolute coordinates."""
    pieces = []
    for piece in d.split("M")[1:]:
        values = [float(v) for v in re.findall(r"-?[\d.]+", piece)]
        points = [(values[0], values[1])]
        for dx, dy in zip(values[2::2], values[3::2], strict=True):
            points.append((points[-1][0] + dx, points[-1][1] + dy))
        pieces.append(points)
    return pieces


def tree(markup):
    return Page(markup).root


# ------------------------------------------------------------------------ axes


def test_a_path_goes_through_its_points_and_rounding_does_not_add_up():
    points = [(i * 1.037, 50 - i * 0.0449) for i in range(1000)]
    drawn = corners(path(points))
    assert len(drawn) == 1
    for (x, y), (a, b) in zip(points, drawn[0], strict=True):
        assert abs(x - a) <= 0.0501 and abs(y - b) <= 0.0501


def test_a_gap_interrupts_a_path():
    assert [len(piece) for piece in corners(path([(0, 0), (1, 2), None, None, (5, 5), (6, 4), (7, 3)]))] == [2, 3]
    assert corners(path([None, (1, 1), None])) == [[(1.0, 1.0)]]


def test_a_logarithmic_axis_spans_whole_decades_and_puts_what_is_outside_on_its_edge():
    axis = log_axis([3e-5, 2e-2], 100, 0)
    assert (axis.low, axis.high) == (-5, -1)
    assert axis(1e-5) == 100 and axis(1e-1) == 0 and axis(1e-3) == pytest.approx(50)
    assert axis(0.0) == 100 and axis(1e9) == 0
    assert axis.ticks()[0] == (1e-5, "10⁻⁵")


@pytest.mark.parametrize("values", [[], [1.0], [0.0, math.nan, math.inf], [5.0, 6.0]])
def test_a_logarithmic_axis_is_at_least_two_decades_high(values):
    axis = log_axis(values, 100, 0)
    assert axis.high - axis.low >= 2


def test_a_linear_axis_has_round_ticks_within_it():
    axis = linear_axis([0.13, 2.4], 100, 0)
    ticks = axis.ticks()
    assert [label for _, label in ticks] == ["0", "0.5", "1", "1.5", "2", "2.5"]
    assert all(0 <= axis(value) <= 100 for value, _ in ticks)
    assert linear_axis([2.3, 2.3], 100, 0)(2.3) == pytest.approx(50)


@pytest.mark.parametrize("span", [(-12, 7), (-3, -1), (0, 40)])
def test_there_are_never_many_ticks(span):
    assert 2 <= len(Axis(*span, 100, 0).ticks()) <= 6


def test_lines_cross_a_plot():
    assert crossing([1.0, 2.5], 0, 10) == "M0 1H10M0 2.5H10"
    assert crossing([1.0], 0, 10, upright=True) == "M1 0V10"


# ------------------------------------------------------------------------ over depth


def test_the_line_is_the_gradient_relative_to_the_last_body_layer():
    report = deep(16)
    layers = shown_layers(report.measurement)
    chart = tree(depth_chart(report, layers, "p")[0])
    line = next(e for e in chart.all("path", class_="line") if e.has("class", "gradient") and not e.has("class", "last"))
    ends = last_gradients(report.measurement)
    body = [i for i, x in enumerate(layers) if x.kind == "linear"]
    relative = [gradient(layers[i].snapshots[0]) / ends[0] for i in body]
    axis = log_axis([*course(layers, gradient, ends).sizes, 10**-2.5, 10**2.5], 261, 71)  # three lanes above it
    drawn = corners(line.attributes["d"])[0]
    assert len(drawn) == len(body)
    for i, value, (x, y) in zip(body, relative, drawn, strict=True):
        assert x == pytest.approx(column(i, 16), abs=0.06)
        assert y == pytest.approx(axis(value), abs=0.06)
    assert relative[-1] == 1.0


def test_the_range_is_over_the_measured_steps():
    values = [3.0, 0.5, 7.0, 0.0, math.nan]
    shots = tuple(Snapshot(i, stats(abs(v)) if v == v else replace(stats(1.0), nan=1)) for i, v in enumerate(values))
    c = course([layer(snapshots=shots)], lambda s: math.inf if s.output.nan else s.output.rms)
    assert (c.first, c.last) == ((3.0,), (math.inf,))
    assert (c.lowest, c.highest) == (pytest.approx((0.5,)), pytest.approx((7.0,)))


def test_a_few_layers_have_no_limits_of_a_trend():
    few = deep(5)
    assert last_gradients(few.measurement) is None
    assert not tree(depth_chart(few, shown_layers(few.measurement), "p")[0]).all(class_="zone")
    many = deep(16)
    assert tree(depth_chart(many, shown_layers(many.measurement), "p")[0]).all(class_="zone")


def test_findings_are_marked_over_their_layers():
    chart = tree(depth_chart(deep(16), shown_layers(deep(16).measurement), "p")[0])
    bars = {b.all("title")[0].words: b for b in chart.all("rect", class_="lane")}
    half = bars["signal-gain (INIT001)"]  # of the first eight layers
    assert float(half.attributes["x"]) == pytest.approx(LEFT, abs=1)
    assert float(half.attributes["width"]) == pytest.approx((RIGHT - LEFT) / 2, abs=1.5)


def test_zero_and_broken_gradients_are_marked_and_not_drawn():
    shots = snapshots(gradient=1e-3)
    zero = tuple(replace(s, gradient=stats(0.0)) for s in shots)
    broken = tuple(replace(s, gradient=replace(stats(1.0), inf=1)) for s in shots)
    layers = tuple(layer(f"l{i}", order=i, snapshots=(shots, zero, broken, shots, shots, shots)[i]) for i in range(6))
    report = Report("m.py", (), (), (measurement(layers=layers),))
    chart = tree(depth_chart(report, layers, "p")[0])
    assert [e.words for e in chart.all("text", class_="mark")] == ["0", "✕"]
    line = next(e for e in chart.all("path", class_="line") if e.has("class", "gradient") and not e.has("class", "last"))
    assert [len(piece) for piece in corners(line.attributes["d"])] == [1, 3]


def test_functions_called_all_over_the_model_have_no_depth():
    layers = [layer("a"), layer(":relu", "activation", calls=12), layer("rnn", "recurrent", calls=12), layer("b", snapshots=())]
    assert columns(layers) == [0, 2]


def test_the_description_says_what_the_picture_shows():
    desc = tree(depth_chart(deep(16), shown_layers(deep(16).measurement), "p")[0]).all("desc")[0].words
    assert "Over 16 layers the gradient norm goes from" in desc and "decades per layer" in desc and "limit of the rules: 2.5" in desc


# ------------------------------------------------------------------------ heatmap


def pixels(url):
    return Image.open(io.BytesIO(b64decode(url.removeprefix("data:image/png;base64,"))))


def test_a_png_has_the_colours_that_it_was_given():
    colours = [(0, 0, 0), (255, 0, 0), (10, 20, 30)]
    picture = pixels(data_url([bytes([0, 1, 2]), bytes([2, 2, 1])], colours, 0))
    assert picture.size == (3, 2)
    seen = [[picture.convert("RGBA").getpixel((x, y)) for x in range(3)] for y in range(2)]
    assert seen[0] == [(0, 0, 0, 0), (255, 0, 0, 255), (10, 20, 30, 255)]
    assert seen[1] == [(10, 20, 30, 255)] * 2 + [(255, 0, 0, 255)]


def test_every_cell_of_the_heatmap_is_the_colour_of_its_value():
    report = deep(10)
    layers = shown_layers(report.measurement)
    choices = statistics(report.measurement, layers)
    urls = [e.attributes["href"] for e in tree(heatmap(report.measurement, layers, choices, "p", 100.0)).all("image")]
    assert [s.name for s in choices] == ["gradient", "output", "update"]
    picture = pixels(urls[0]).convert("RGB")
    values = [[x.snapshots[k].gradient.norm for x in layers] for k in range(len(STEPS))]
    low, high = min(min(v) for v in values), max(max(v) for v in values)
    for row, line in enumerate(values):
        for i, value in enumerate(line):
            share = math.log(value / low) / math.log(high / low)
            code = FIRST + round(252 * share)
            assert picture.getpixel((i, row)) == palette()[_coarse(code)]


def test_missing_zero_and_broken_cells_have_colours_of_their_own():
    shots = (Snapshot(0, stats(1.0), stats(1.0)), Snapshot(1, stats(1.0), stats(0.0)), Snapshot(2, stats(1.0), replace(stats(1.0), nan=3)))
    layers = (layer("a", snapshots=shots), layer("b", snapshots=(Snapshot(0, stats(1.0), stats(9.0)),)))
    m = measurement(layers=layers, measured_steps=(0, 1, 2))
    codes = list(b64decode(encoded(statistics(m, layers)[0])))
    assert codes == [FIRST, 255, ZERO, MISSING, BROKEN, MISSING]


# ------------------------------------------------------------------------ curves, distributions, table


def test_curves_of_every_training_are_shown():
    titles = [g.title for g in groups(treated())]
    assert titles == [
        "Probe training, as configured",
        "Experiments after the probe failed",
        "What was kept, together: without and with",
        "he-init: without and with",
    ]
    assert [g.title for g in groups(healthy())] == titles[:1]


def test_a_curve_is_the_losses():
    report = Report("m.py", (), (), (measurement(probe=run([4.0, 2.0, 1.0], batches=1), chance=None),))
    curve = tree(curve_chart(groups(report)[0])).all("path", class_="curve")[0]
    axis = linear_axis([4.0, 2.0, 1.0], BOTTOM, TOP)
    assert [y for _, y in corners(curve.attributes["d"])[0]] == pytest.approx([axis(4.0), axis(2.0), axis(1.0)], abs=0.06)


def test_no_spike_of_a_long_training_is_lost():
    losses = [1.0] * 5000
    losses[3217] = 2.5
    report = Report("m.py", (), (), (measurement(probe=run(losses, batches=1), chance=None),))
    curve = tree(curve_chart(groups(report)[0])).all("path", class_="curve")[0]
    points = corners(curve.attributes["d"])[0]
    assert len(points) < 400
    assert min(y for _, y in points) == pytest.approx(linear_axis(losses, BOTTOM, TOP)(2.5), abs=0.06)


def test_an_experiment_that_diverged_does_not_flatten_the_others():
    m = measurement(probe=stalled(), experiments=(diverged(name="rate x10"),))
    figure = tree(curve_chart(groups(Report("m.py", (), (), (m,)))[1]))
    labels = [float(e.words) for e in figure.all("text", class_="tick") if "step" not in e.words]
    assert max(labels) <= TALLEST * 2.4
    assert "then not finite" in figure.all("ul")[0].words


def test_a_histogram_has_the_shares_of_the_exponents():
    counted = replace(stats(1.0), exponent_low=-2, exponent_counts=(1, 4, 2))
    shown = tree(distribution(layer(snapshots=(Snapshot(0, counted, None),))))
    filled = shown.all("path", class_="filled")[0].attributes["d"]
    heights = [BASE - float(y) for y in re.findall(r"V([\d.]+)H", filled)]
    assert heights == pytest.approx([max(heights) / 4, max(heights), max(heights) / 2], abs=1)


def test_distributions_are_of_layers_with_findings_spread_over_the_depth():
    report = deep(64)
    chosen = chosen_layers(report, shown_layers(report.measurement))
    assert [chosen[0].order, chosen[-1].order] == [0, 63] and len(chosen) == 6
    assert chosen_layers(healthy(), shown_layers(healthy().measurement)) == []


def test_the_table_has_a_row_per_layer_and_keeps_the_rest_behind_a_box():
    report = deep(FIRST_ROWS + 7)
    table = tree(layer_table(report, shown_layers(report.measurement), "p"))
    first, rest = table.all("tbody")
    assert (len(first.all("tr")), len(rest.all("tr"))) == (FIRST_ROWS, 7)
    assert table.all("input")[0].has("class", "show-all")
    cells = [c.words for c in first.all("tr")[3].all("td")]
    assert cells[1:5] == ["encoder.layers.0.linear1", "Linear", "32x64", "4,096"]
    assert cells[-1] == "▲ GRAD001"


def test_a_parameter_names_its_layer_in_the_table():
    finding = faulty(layers=["fc2.weight"])
    report = Report("m.py", (finding,), (), (measurement(),))
    rows = tree(layer_table(report, shown_layers(report.measurement), "p")).all("tbody")[0].all("tr")
    assert [r.all("td")[-1].words for r in rows] == ["", "", "▲ GRAD001"]


def test_a_small_line_rises_where_the_values_do():
    def heights(values):
        numbers = re.search(r'd="M1 (\d+)l([^"]+)"', spark_line(values))
        moves = [int(v) for v in re.findall(r"-?\d+", numbers[2])][1::2]
        return [int(numbers[1]) + sum(moves[:i]) for i in range(len(values))]

    up = heights([1e-5, 1e-3, 1e-1])
    assert up == sorted(up, reverse=True) and up[0] > up[1] > up[2]  # y grows downwards
    assert len(set(heights([1.0, 1.01, 0.99]))) == 1  # noise is not blown up
    assert heights([1.0, 0.0])[1] > heights([1.0, 0.0])[0]
    assert spark_line([1.0]) == spark_line([0.0, 0.0]) == ""
