"""The `html` format: a page that needs nothing but a browser. `page.py` puts its sections in order."""

from collections.abc import Sequence

from gradcheck.report.formatting import View
from gradcheck.types.report import Report
from gradcheck.types.trial import TrialResult


def render(reports: Sequence[Report], view: View | None = None) -> str:
    """One self-contained page for one or several reports."""
    from gradcheck.report.html.page import document

    return document(reports, written=view is not None and view.written)


def shown(what: Sequence[Report] | TrialResult) -> str:
    """Reports or the result of a trial as a notebook shows them: a part of a page, with styles of its own."""
    from gradcheck.report.html.page import of_reports, of_trial

    return of_reports(what) if isinstance(what, Sequence) else of_trial(what)
