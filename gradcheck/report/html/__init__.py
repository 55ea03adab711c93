"""The `html` format: a page that needs nothing but a browser.

page           the document: its sections in order, and the policy that keeps it off the network
verdict        the verdict in words, and the scores
findings       a finding with its source, numbers and remedies; treatments: what was tried; rule_text: the rule's page
signal         the numbers over depth; depth and heatmap draw them, axes and png help
curves         losses;  layers: the table;  distributions: histograms;  states: rules without a finding;  method: settings
markup, theme  HTML that escapes what is data; colours.  style.css, script.js: what the page looks like, and what it does on request
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradcheck.report.outputs import View
    from gradcheck.types.report import Report


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """One self-contained page for one or several reports. `view` says how other formats look, and is not needed."""
    from gradcheck.report.html.page import document

    return document(reports)
