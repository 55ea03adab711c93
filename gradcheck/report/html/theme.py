"""Colours of both themes, as CSS variables, and signs beside them. tests/report/html/test_theme.py computes the contrast."""

from collections.abc import Mapping

from markupsafe import Markup

from gradcheck.report.html.markup import tag
from gradcheck.types.finding import Severity

LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "panel": "#f6f8fa",
    "ink": "#1b1f24",
    "soft": "#57606a",
    "line": "#d5dbe1",
    "grid": "#e6eaee",
    "error": "#b3261e",
    "warning": "#8a5300",
    "info": "#0b5cad",
    "good": "#136c34",
    "error-back": "#fdeeec",
    "warning-back": "#fdf3e1",
    "info-back": "#e9f2fc",
    "good-back": "#e6f6eb",
    "gradient": "#0b5cad",
    "output": "#8a3ea8",
    "first": "#0b5cad",
    "second": "#b35900",
    "third": "#1a7f4b",
    "fourth": "#8a3ea8",
    "fifth": "#a1285f",
    "sixth": "#57606a",
}
DARK: Mapping[str, str] = {
    "paper": "#0f1419",
    "panel": "#171d24",
    "ink": "#e6edf3",
    "soft": "#9fabb8",
    "line": "#313a44",
    "grid": "#232b34",
    "error": "#ff8f85",
    "warning": "#f0b04a",
    "info": "#76b9ff",
    "good": "#62d38f",
    "error-back": "#351a1b",
    "warning-back": "#33270f",
    "info-back": "#12263b",
    "good-back": "#10291b",
    "gradient": "#76b9ff",
    "output": "#d6a9f5",
    "first": "#76b9ff",
    "second": "#f0a35a",
    "third": "#62d38f",
    "fourth": "#d6a9f5",
    "fifth": "#ff9ac4",
    "sixth": "#9fabb8",
}
# What is read on what: (text, background).
READ = (
    *((ink, back) for ink in ("ink", "soft", "error", "warning", "info", "good") for back in ("paper", "panel")),
    *((f"{level}", f"{level}-back") for level in ("error", "warning", "info", "good")),
    *(("ink", f"{level}-back") for level in ("error", "warning", "info", "good")),
)
# What must stand out against its background: lines of charts.
SEEN = tuple((name, "paper") for name in ("gradient", "output", "first", "second", "third", "fourth", "fifth", "sixth"))


def variables() -> str:
    """`:root` rules: light, dark where the system is, and either one on request (`data-theme`, which the button sets)."""
    dark = rule(DARK, "dark")
    return (
        f":root{{{rule(LIGHT, 'light')}}}"
        f"@media screen and (prefers-color-scheme:dark){{:root:not([data-theme=light]){{{dark}}}}}"
        f"@media screen{{:root[data-theme=dark]{{{dark}}}}}"
    )


def rule(colors: Mapping[str, str], scheme: str) -> str:
    """The declarations of a theme."""
    return "".join(f"--{name}:{color};" for name, color in colors.items()) + f"color-scheme:{scheme}"


SIGNS: Mapping[str, str] = {"error": "▲", "warning": "■", "info": "◆", "good": "●", "none": "–"}


def sign(level: Severity | str) -> Markup:
    """▲ error, ■ warning, ◆ info, ● good; the word beside it says the same to screen readers."""
    return tag("span", SIGNS[level], class_=f"sign {level}", aria_hidden="true")
