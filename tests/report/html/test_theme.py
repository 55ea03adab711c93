"""Colours: readable in both themes, and all of them known to the style sheet."""

from __future__ import annotations

import re

import pytest

from gradcheck.report.html.markup import DARK, LIGHT, READ, SEEN, variables
from gradcheck.report.html.page import asset

AA_TEXT, AA_GRAPHICS = 4.5, 3.0  # WCAG 2.2, 1.4.3 and 1.4.11


def contrast(one, other):
    """Contrast ratio of two colours `#rrggbb`, 1 to 21 (WCAG 2.2)."""
    bright, dim = sorted((_luminance(one), _luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def _luminance(color):
    channels = (int(color[i : i + 2], 16) / 255 for i in (1, 3, 5))
    red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_text_has_the_contrast_of_aa(theme):
    assert {(a, b): c for a, b in READ if (c := round(contrast(theme[a], theme[b]), 2)) < AA_TEXT} == {}


@pytest.mark.parametrize("theme", [LIGHT, DARK], ids=["light", "dark"])
def test_lines_have_the_contrast_of_aa(theme):
    assert {(a, b): c for a, b in SEEN if (c := round(contrast(theme[a], theme[b]), 2)) < AA_GRAPHICS} == {}


@pytest.mark.parametrize(
    ("one", "other", "ratio"), [("#000000", "#ffffff", 21.0), ("#777777", "#ffffff", 4.48), ("#ff0000", "#ffffff", 4.0)]
)
def test_contrast_is_that_of_wcag(one, other, ratio):
    assert contrast(one, other) == contrast(other, one) == pytest.approx(ratio, abs=0.005)


def test_both_themes_have_the_colours_that_the_style_sheet_uses():
    used = set(re.findall(r"var\(--([a-z-]+)\)", asset("style.css"))) - {"mono"}
    assert used <= LIGHT.keys() == DARK.keys()


def test_colours_are_in_the_theme_only():
    assert not re.search(r"#[0-9a-f]{3,8}\b|rgb\(", asset("style.css").replace("#tip", ""))


def test_print_is_light():
    assert variables().index(":root{--paper:#ffffff") == 0
    assert all(part.startswith("screen") for part in variables().split("@media ")[1:])
