"""What is done about findings: once each, in a thread of its own, and never to the harm of the training."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

import gradcheck
from gradcheck.errors import ConfigError
from gradcheck.live import acting
from gradcheck.live.acting import Actor, command_of, message, payload, webhook
from gradcheck.types.gauges import LiveFinding
from tests.live import faulty

ERROR = LiveFinding("error", "ACT002", "dead-units", "31 of 32 <units> are dead & gone", "train.py:10:5")
WARNING = LiveFinding("warning", "OPT001", "rate-too-high", "the rate is high")
INFO = LiveFinding("info", "REG001", "no-decay", "nothing decays")
SECRET = "/services/T000/SECRET"


class Hook(http.server.BaseHTTPRequestHandler):
    got: ClassVar[list[tuple[str, Any]]] = []

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        Hook.got.append((self.path, json.loads(body)))
        if self.path.startswith("/moved"):
            self.send_response(302)
            self.send_header("Location", "/elsewhere")
        else:
            self.send_response(500 if self.path.startswith("/broken") else 200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        Hook.got.append((self.path, None))
        self.send_error(404)

    def log_message(self, *args: Any) -> None: ...


@pytest.fixture
def server() -> Iterator[str]:
    Hook.got.clear()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hook) as found:
        threading.Thread(target=found.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{found.server_address[1]}"
        found.shutdown()


def test_each_finding_is_told_once_and_levels_count(server: str) -> None:
    actor = Actor([webhook(server + SECRET, "/home/me/train.py")])
    actor.look([ERROR, INFO], 7)
    actor.look([ERROR, WARNING, INFO], 8)
    actor.finish()
    assert Hook.got == [(SECRET, message(ERROR, 7, "train.py")), (SECRET, message(WARNING, 8, "train.py"))]
    said = Hook.got[0][1]
    assert said["run"] == "train.py" and said["code"] == "ACT002" and said["place"] == "train.py:10:5"
    assert sorted(said) == ["code", "message", "name", "place", "run", "severity", "step", "tool"]


def test_payloads_are_what_slack_and_discord_take() -> None:
    said = message(ERROR, 7, "train.py")
    slack = payload("hooks.slack.com", said)
    assert set(slack) == {"text"} and "&lt;units&gt; are dead &amp; gone" in slack["text"] and "train.py:10:5" in slack["text"]
    for host in ("discord.com", "ptb.discord.com", "discordapp.com"):
        shown = payload(host, said | {"message": "x" * 5000})
        assert shown["allowed_mentions"] == {"parse": []} and len(shown["content"]) <= 2000
    assert payload("example.org", said) is said and payload("notdiscord.com", said) is said


def test_a_webhook_that_fails_is_said_without_its_address(server: str, capfd: pytest.CaptureFixture[str]) -> None:
    addresses = (f"{server}/broken{SECRET}", f"{server}/moved{SECRET}", "http://127.0.0.1:1" + SECRET)
    actor = Actor([webhook(address, "train.py") for address in addresses])
    actor.look([ERROR], 7)
    actor.finish()
    said = capfd.readouterr().err
    assert said.count("127.0.0.1 was not told of ACT002") == 3 and "it answered 500" in said and "it answered 302" in said
    assert "SECRET" not in said
    assert [path for path, _ in Hook.got] == [f"/broken{SECRET}", f"/moved{SECRET}"]  # nothing goes elsewhere


def test_looking_does_not_wait_for_an_action() -> None:
    gate, waited = threading.Event(), []
    actor = Actor([("error", lambda finding, step: waited.append(gate.wait(60)))])
    actor.look([ERROR], 1)
    gate.set()  # never reached in time if the look waited
    actor.finish(60)
    assert waited == [True]


def test_a_webhook_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    import socket

    monkeypatch.setattr(acting, "MESSAGE_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        actor = Actor([webhook(f"http://127.0.0.1:{silent.getsockname()[1]}", "")])
        actor.look([ERROR], 1)
        actor.finish()
    assert "127.0.0.1 was not told of ACT002: TimeoutError" in capfd.readouterr().err


def test_a_command_gets_the_finding(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    to = tmp_path / "said"
    line = f'echo "$GRADCHECK_CODE $GRADCHECK_STEP $GRADCHECK_MESSAGE" > {to}; cat >> {to}; echo shown; exit 3'
    actor = Actor([command_of(f"error={line}", "train.py")])
    actor.look([WARNING, ERROR], 7)
    actor.finish()
    first, second = to.read_text().splitlines()
    assert first == f"ACT002 7 {ERROR.message}" and json.loads(second) == message(ERROR, 7, "train.py")
    said = capfd.readouterr()
    assert said.out == "" and "shown\n" in said.err and "failed with exit code 3" in said.err


def test_a_command_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(acting, "COMMAND_SECONDS", 0.2)
    actor = Actor([command_of("warning=sleep 100 & sleep 100", "train.py")])
    actor.look([ERROR], 7)
    actor.finish()
    assert "was ended: it took more than" in capfd.readouterr().err


@pytest.mark.parametrize("text", ["error", "error=", "fatal=ls", "=ls"])
def test_bad_commands_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="say the level"):
        command_of(text, "")


@pytest.mark.parametrize("address", ["", "ftp://a/SECRET", "hooks.slack.com/SECRET", "https://", "http://[SECRET", "https://a b/SECRET"])
def test_bad_addresses_are_refused_and_not_shown(address: str) -> None:
    with pytest.raises(ConfigError, match="address of a webhook") as caught:
        webhook(address, "")
    assert "SECRET" not in str(caught.value)


def test_a_callback_in_python_has_a_thread_of_its_own_and_may_fail(capfd: pytest.CaptureFixture[str]) -> None:
    heard: list[tuple[str, int, bool]] = []

    def callback(finding: LiveFinding, step: int) -> None:
        heard.append((finding.code, step, threading.current_thread() is threading.main_thread()))
        raise RuntimeError("mine")

    faulty.non_finite(lambda model, optimizer: gradcheck.watch(model, optimizer, every=5, on_finding=callback))
    assert heard and not any(main for _, _, main in heard) and len({code for code, _, _ in heard}) == len(heard)
    assert capfd.readouterr().err.count("RuntimeError: mine") == len(heard)
    with pytest.raises(ConfigError, match="on_finding must be callable"):
        faulty.non_finite(lambda model, optimizer: gradcheck.watch(model, optimizer, on_finding=3))  # type: ignore[arg-type]


def test_nothing_is_done_unless_asked_for() -> None:
    actor = Actor([])
    actor.look([ERROR], 1)
    actor.finish()
    assert actor._thread is None
