"""The `html` format: a page that needs nothing but a browser.

page           the document: its sections in order, and the policy that keeps it off the network
verdict        the verdict in words, and the scores
findings       a finding with its source, numbers and remedies; treatments: what was tried; rule_text: the rule's page
signal         the numbers over depth; depth and heatmap draw them, axes and png help
curves         losses;  layers: the table;  distributions: histograms;  states: rules without a finding;  method: settings
fragment       a part of the page for a notebook, with styles of its own
markup, theme  HTML that escapes what is data; colours.  style.css, script.js: what the page looks like, and what it does on request
"""

from collections.abc import Sequence

from gradcheck.report.formatting import View
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """One self-contained page for one or several reports. `view` says how other formats look, and is not needed."""
    from gradcheck.report.html.page import document

    return document(reports)


def shown(what: Sequence[Report] | TrialResult) -> str:
    """Reports or the result of a trial as a notebook shows them: a part of a page, with styles of its own."""
    from gradcheck.report.html.fragment import of_reports, of_trial

    return of_reports(what) if isinstance(what, Sequence) else of_trial(what)
