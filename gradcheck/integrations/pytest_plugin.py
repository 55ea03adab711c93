"""The pytest plugin: the fixture `gradcheck`, its marker and options, and a section of the terminal summary.

    @pytest.mark.gradcheck(fail_on="warning", select=["GRAD", "INIT"])
    def test_the_encoder_trains(gradcheck):
        report = gradcheck(Encoder(), batches, loss=nn.functional.cross_entropy)

Every pytest run loads this module, so it imports nothing heavy: PyTorch is imported when the fixture is called.
"""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from gradcheck.config.settings import Settings
from gradcheck.types.report import Report

LEVELS = ("error", "warning", "info", "never")
PROPERTY = "gradcheck"  # of a test: what its scan found. It reaches JUnit files, and the main process of pytest-xdist
MARKER = (
    "gradcheck(fail_on=..., select=[...], ...): settings of the scans that the test makes with the fixture `gradcheck`; "
    "the keys of [tool.gradcheck], with underscores"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("gradcheck", "training health of PyTorch models")
    group.addoption("--gradcheck-fail-on", choices=LEVELS, help="severity of findings that fail a test [error]")
    group.addoption("--gradcheck-allow-partial", action="store_true", help="do not fail a test whose training was judged in part")
    group.addoption("--gradcheck-skip", action="store_true", help="skip the tests that scan a model")
    parser.addini("gradcheck_fail_on", "severity of findings that fail a test: error, warning, info or never", default="")
    parser.addini("gradcheck_allow_partial", "do not fail a test whose training was judged in part", type="bool", default=False)
    parser.addini("gradcheck_skip", "skip the tests that scan a model", type="bool", default=False)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", MARKER)
    level = config.getini("gradcheck_fail_on")
    if level and level not in LEVELS:
        raise pytest.UsageError(f"gradcheck_fail_on must be one of {', '.join(LEVELS)}; got {level!r}")


@pytest.fixture
def gradcheck(request: pytest.FixtureRequest) -> Callable[..., Report]:
    """`gradcheck(model, data, loss=..., optimizer=...)` scans as `gradcheck.scan` does; findings and a verdict in part fail the test.

    Returns the report. Settings are those of [tool.gradcheck], with those of the marker over them.
    """
    if request.config.getoption("--gradcheck-skip") or request.config.getini("gradcheck_skip"):
        pytest.skip("gradcheck is skipped: --gradcheck-skip")
    settings = _settings(request)

    def check(model: Any, data: Any, **options: Any) -> Report:
        from gradcheck.api import scan

        report = scan(model, data, config=settings, **options)
        failed = report.exit_code(settings.fail_on, allow_partial=settings.allow_partial) != 0
        request.node.user_properties.append((PROPERTY, _line(report, failed)))
        if failed:
            pytest.fail(_full(report), pytrace=False)
        return report

    return check


def _settings(request: pytest.FixtureRequest) -> Settings:
    """The configuration at pytest's root, then the ini file, the command line and the marker, the last one winning."""
    from gradcheck.config.settings import load
    from gradcheck.errors import GradcheckError

    allowed = request.config.getoption("--gradcheck-allow-partial") or request.config.getini("gradcheck_allow_partial") or None
    level = request.config.getoption("--gradcheck-fail-on") or request.config.getini("gradcheck_fail_on") or None
    marker = request.node.get_closest_marker("gradcheck")
    given: dict[str, Any] = dict(marker.kwargs) if marker is not None else {}
    try:
        return load(request.config.rootpath).with_flags(**{"fail_on": level, "allow_partial": allowed} | given)
    except GradcheckError as e:
        raise pytest.UsageError(f"gradcheck: {e.message}" + (f" ({e.hint})" if e.hint else "")) from e


def _line(report: Report, failed: bool) -> str:
    from gradcheck.report.formatting import summary

    return f"{'FAILED' if failed else 'passed'} {report.target}: {summary(report)}"


def _full(report: Report) -> str:
    import io

    from gradcheck.report.console import make_console, show
    from gradcheck.report.formatting import summary

    text = io.StringIO()
    show(report, make_console(text, "never"))
    return f"gradcheck: {report.target}: {summary(report)}\n\n{text.getvalue()}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    lines = list(_lines(terminalreporter))
    if lines:
        terminalreporter.section("gradcheck")
        for line in lines:
            terminalreporter.write_line(line)


def _lines(reporter: pytest.TerminalReporter) -> Iterator[str]:
    """What every scan of the session found, with its test."""
    for results in reporter.stats.values():
        for result in results:
            if isinstance(result, pytest.TestReport) and result.when == "call":
                for name, text in result.user_properties:
                    if name == PROPERTY:
                        yield f"{result.nodeid}: {text}"
