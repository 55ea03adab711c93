"""`--open`, and pages in a terminal."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path
from urllib.parse import unquote, urlparse

import pytest

from gradcheck.errors import ConfigError
from gradcheck.report.formatting import View
from gradcheck.report.outputs import Output, open_reports, parse_outputs, write_outputs
from gradcheck.types.report import Report
from tests.literals import measurement

REPORT = Report("model.py", (), (), (measurement(),))


@pytest.fixture
def opened(monkeypatch):
    """Addresses that were opened."""
    addresses = []
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(webbrowser, "open", lambda address: addresses.append(address) or True)
    return addresses


def path_of(address):
    return Path(unquote(urlparse(address).path))


@pytest.fixture
def terminal(monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)


def test_the_file_that_was_asked_for_is_opened(opened, tmp_path):
    outputs = parse_outputs([f"html:{tmp_path / 'a b.html'}"], opened=True)
    write_outputs([REPORT], outputs, View())
    open_reports([REPORT], outputs)
    assert [path_of(a) for a in opened] == [tmp_path / "a b.html"]


def test_without_a_file_one_is_made_outside_of_the_users_folder(opened, tmp_path, monkeypatch):
    (tmp_path / "work").mkdir()
    (tmp_path / "temporary").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    open_reports([REPORT], [Output("full")])
    made = path_of(opened[0])
    assert made.parent == tmp_path / "temporary" and made.read_text(encoding="utf-8").startswith("<!doctype html>")
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.skipif(sys.platform in ("win32", "darwin"), reason="there is always a display")
def test_without_a_display_the_place_is_told(opened, monkeypatch, capsys, tmp_path):
    for name in ("DISPLAY", "WAYLAND_DISPLAY", "BROWSER"):
        monkeypatch.delenv(name, raising=False)
    open_reports([REPORT], [Output("html", tmp_path / "r.html")])
    assert opened == []
    assert capsys.readouterr().err == f"note: no display to open a browser on: the report is {tmp_path / 'r.html'}\n"


@pytest.mark.parametrize("answer", [False, webbrowser.Error("no browser")])
def test_without_a_browser_the_place_is_told(opened, monkeypatch, capsys, tmp_path, answer):
    def fail(address):
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(webbrowser, "open", fail)
    open_reports([REPORT], [Output("html", tmp_path / "r.html")])
    assert f"no web browser was found: the report is {tmp_path / 'r.html'}" in capsys.readouterr().err


def test_a_page_is_not_printed_to_a_terminal(terminal):
    with pytest.raises(ConfigError, match="html is not for a terminal"):
        parse_outputs(["html"])


def test_a_page_that_is_opened_leaves_the_terminal_to_the_full_format(terminal):
    assert parse_outputs(["html"], opened=True) == (Output("full"),)


def test_a_page_goes_into_a_pipe(capsys):
    outputs = parse_outputs(["html"])
    write_outputs([REPORT], outputs, View())
    assert capsys.readouterr().out == REPORT.to_html()
