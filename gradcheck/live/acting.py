"""Actions on findings: a command, a message to a webhook, a callback. None unless it is asked for. No torch here. All of them run in a
thread of their own, one after another, each with a time limit. One that fails or hangs is reported on stderr and harms nothing. A message
holds the text of a finding and the name of the program's file: no arguments, no environment, no values of tensors. The address of a webhook
is a secret: only its host is ever shown.
"""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from gradcheck.errors import ConfigError
from gradcheck.types.finding import SEVERITIES
from gradcheck.types.gauges import LiveFinding

LEVELS = ("error", "warning")
COMMAND_SECONDS = 60.0  # that a command may take
MESSAGE_SECONDS = 10.0  # that a webhook may take
LAST_SECONDS = 15.0  # that all of them may take when the run is over
MOST = 50  # most findings of a run that are acted on
LONGEST = 1500  # characters of a message: Discord takes 2000
SLACK = ("hooks.slack.com", "hooks.slack-gov.com")
DISCORD = ("discord.com", "discordapp.com")

_STDERR = 2

Act = Callable[[LiveFinding, int], None]  # of a finding, seen at this step


@dataclass
class Actor:
    """`acts`: the actions, each with the least severity that it is told of."""

    acts: Sequence[tuple[str, Act]]
    _known: set[tuple[str, str]] = field(default_factory=set)
    _jobs: queue.SimpleQueue[tuple[Act, LiveFinding, int] | None] = field(default_factory=queue.SimpleQueue)
    _thread: threading.Thread | None = None

    def look(self, findings: Iterable[LiveFinding], step: int) -> None:
        """Acts on each finding once. Returns at once."""
        for finding in findings if self.acts else ():
            key = finding.code, finding.place
            if key in self._known or len(self._known) >= MOST:
                continue
            wanted = [act for level, act in self.acts if SEVERITIES.index(finding.severity) <= SEVERITIES.index(level)]
            if not wanted:
                continue
            self._known.add(key)
            for act in wanted:
                self._jobs.put((act, finding, step))
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True, name="gradcheck-acting")
                self._thread.start()

    def finish(self, seconds: float = LAST_SECONDS) -> None:
        """Waits this long for pending actions, at the end of the run."""
        if self._thread is None:
            return
        self._jobs.put(None)
        self._thread.join(seconds)
        if self._thread.is_alive():
            _say(f"not all actions on findings finished within {seconds:g} s")
        self._thread = None

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            act, finding, step = job
            try:
                act(finding, step)
            except Exception as error:
                _say(f"an action on {finding.code} failed: {type(error).__name__}: {error}")


def _say(text: str) -> None:
    print(f"gradcheck: {text}", file=sys.stderr, flush=True)


def message(finding: LiveFinding, step: int, run: str) -> dict[str, Any]:
    """The data that leave the process."""
    said = {"severity": finding.severity, "code": finding.code, "name": finding.name, "message": finding.message, "place": finding.place}
    return {"tool": "gradcheck", "run": os.path.basename(run), "step": step} | said


def command_of(text: str, run: str) -> tuple[str, Act]:
    """`error=CMD`, for the shell. Raises ConfigError for anything else.

    It gets the finding in its environment (GRADCHECK_CODE, _NAME, _SEVERITY, _MESSAGE, _PLACE, _STEP, _RUN), and as JSON on its stdin.
    """
    level, _, command = text.partition("=")
    if level not in LEVELS or not command.strip():
        hint = """--on error='notify-send "$GRADCHECK_MESSAGE"'"""
        raise ConfigError(f"--on {text}: say the level, error or warning, and a command", hint=hint)

    def act(finding: LiveFinding, step: int) -> None:
        said = message(finding, step, run)
        named = {f"GRADCHECK_{name.upper()}": str(value) for name, value in said.items() if name != "tool"}
        environment = os.environ | named
        process = subprocess.Popen(command, shell=True, env=environment, stdin=subprocess.PIPE, stdout=_STDERR, start_new_session=True)
        try:
            process.communicate(json.dumps(said).encode(), timeout=COMMAND_SECONDS)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            _say(f"the command of --on {level} was ended: it took more than {COMMAND_SECONDS:g} s")
            return
        if process.returncode:
            _say(f"the command of --on {level} failed with exit code {process.returncode}")

    return level, act


def webhook(address: str, run: str) -> tuple[str, Act]:
    """Sends errors and warnings in Slack's or Discord's format if the address is theirs, otherwise as a JSON object. Raises ConfigError."""
    try:
        parts = urlsplit(address)
        host, scheme = parts.hostname or "", parts.scheme
    except ValueError:
        host = scheme = ""
    if scheme not in ("https", "http") or not host or any(c.isspace() for c in address):
        raise ConfigError("--notify needs the address of a webhook", hint="--notify https://hooks.slack.com/services/...")

    def act(finding: LiveFinding, step: int) -> None:
        said = payload(host, message(finding, step, run))
        headers = {"Content-Type": "application/json", "User-Agent": "gradcheck"}
        request = urllib.request.Request(address, json.dumps(said).encode(), headers, method="POST")
        try:
            _send(request)
        except Exception as error:  # its text may contain the address
            code = getattr(error, "code", None)
            why = f"it answered {code}" if code is not None else type(getattr(error, "reason", error)).__name__
            _say(f"{host} was not told of {finding.code}: {why}")

    return "warning", act


def payload(host: str, said: dict[str, Any]) -> dict[str, Any]:
    place = f" ({said['place']})" if said["place"] else ""
    text = f"{said['run']}, step {said['step']}: {said['severity']}: {said['name']} ({said['code']}) {said['message']}{place}"[:LONGEST]
    if host in SLACK:
        return {"text": text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")}
    if host in DISCORD or host.endswith(tuple(f".{name}" for name in DISCORD)):
        return {"content": text, "allowed_mentions": {"parse": []}}
    return said


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A message for one host is sent to no other."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


def _send(request: urllib.request.Request) -> None:
    """Takes at most MESSAGE_SECONDS for the whole answer, which a server may send byte by byte."""
    end = time.monotonic() + MESSAGE_SECONDS
    with urllib.request.build_opener(_NoRedirect).open(request, timeout=MESSAGE_SECONDS) as answer:
        while time.monotonic() < end and answer.read1(1 << 16):
            pass
