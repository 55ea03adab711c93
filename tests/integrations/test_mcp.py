"""`gradcheck mcp`, driven by the client of the official SDK over stdio."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mcp.server.mcpserver")
anyio = pytest.importorskip("anyio")

from mcp import Client, StdioServerParameters  # noqa: E402

from gradcheck.report.brief import ROOM  # noqa: E402
from gradcheck.report.saved_runs import FOLDER  # noqa: E402
from tests.test_cli_light import command, heavy_among, modules_after  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
FAULTY = ROOT / "sample_models" / "faulty" / "gradient_ascent.py"


@pytest.fixture
def project(tmp_path):
    shutil.copy(FAULTY, tmp_path / "model.py")
    return tmp_path


def talk(project, conversation, *options):
    """What the conversation returns, with a server for the project."""

    async def main():
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}
        parameters = StdioServerParameters(
            command=sys.executable, args=["-m", "gradcheck", "mcp", *options], cwd=str(project), env=environment
        )
        async with Client(parameters) as client:
            return await conversation(client)

    return anyio.run(main)


def text(answer):
    return "".join(block.text for block in answer.content)


def test_an_agent_scans_and_is_told_what_to_do_next(project):
    phases = []

    async def hear(done, total, message):
        phases.append((done, total, message))

    async def conversation(client):
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        scanned = await client.call_tool("scan", {"target": "model.py", "budget": 10}, progress_callback=hear)
        again = await client.call_tool("scan", {"target": "model.py", "fast": True})
        base, head = f"{FOLDER}/model.py.before.json", f"{FOLDER}/model.py.json"
        compared = await client.call_tool("diff", {"base": base, "head": head})
        return tools, scanned, again, compared, await client.call_tool("report", {"run": base, "ignore": ["gradient-ascent"]})

    tools, scanned, again, compared, judged_again = talk(project, conversation)
    assert set(tools) == {"scan", "fix", "explain", "report", "diff"}
    assert "write" not in tools["fix"].input_schema["properties"] and tools["report"].annotations.read_only_hint
    said = text(scanned)
    assert not scanned.is_error and "error gradient-ascent (GRAPH004)" in said and "at model.py:" in said
    assert "next: " in said and 'explain(rule="gradient-ascent")' in said and f"run saved to {FOLDER}/model.py.json" in said
    assert len(said) <= ROOM
    assert scanned.structured_content is None
    assert [p for p in phases if "measuring" in p[2]] and all(0 <= done <= 1 == total for done, total, _ in phases)
    assert "the run before" in text(again) and not compared.is_error and "model.py" in text(compared)
    assert "gradient-ascent" not in text(judged_again)


def test_what_cannot_be_done_is_said_with_the_next_step(project):
    async def conversation(client):
        return [
            await client.call_tool("explain", {"rule": "GRAD001"}),
            await client.call_tool("explain", {"rule": "vanishing-gradiant"}),
            await client.call_tool("scan", {"target": "missing.py"}),
            await client.call_tool("scan", {"target": "--version"}),
            await client.call_tool("report", {"run": "none.json"}),
            await client.call_tool("scan", {"target": "x" * 5000}),
        ]

    page, unknown, missing, option, no_run, too_long = talk(project, conversation)
    assert text(page).startswith("# vanishing-gradient (GRAD001)")
    assert unknown.is_error and 'did you mean "vanishing-gradient"' in text(unknown)
    assert missing.is_error and "missing.py" in text(missing) and "error:" in text(missing) and "Traceback" not in text(missing)
    assert option.is_error and no_run.is_error and "help:" in text(no_run)
    assert too_long.is_error and "too long" in text(too_long) and "help:" in text(too_long)


def test_a_fix_is_a_patch_and_writes_only_where_that_is_allowed(project):
    shutil.copy(FAULTY.with_name("zero_gradient.py"), project / "model.py")
    before = (project / "model.py").read_text()

    async def propose(client):
        return await client.call_tool("fix", {"target": "model.py", "budget": 10})

    async def write(client):
        return await client.call_tool("fix", {"target": "model.py", "budget": 10, "write": True})

    said = text(talk(project, propose))
    assert re.search(r"^-.*\n\+", said, re.MULTILINE) and "git apply" in said and (project / "model.py").read_text() == before
    written = talk(project, write, "--allow-write")
    assert not written.is_error and "Applied" in text(written) and (project / "model.py").read_text() != before


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="the signals are those of POSIX")
@pytest.mark.parametrize(("name", "hello"), [("mcp", "{hello}\n"), ("server", "Content-Length: {length}\r\n\r\n{hello}")])
def test_a_signal_ends_a_server_that_waits_for_its_client(name, hello, tmp_path):
    given = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "x", "version": "1"}, "processId": None}
    text = json.dumps({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": given})
    words, env = [sys.executable, "-m", "gradcheck", name], os.environ | {"PYTHONPATH": str(ROOT)}
    with subprocess.Popen(words, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=env) as server:
        server.stdin.write(hello.format(hello=text, length=len(text)).encode())
        server.stdin.flush()
        assert server.stdout.readline()
        server.terminate()
        assert server.wait(20) == 128 + signal.SIGTERM


def test_the_server_starts_without_torch(tmp_path):
    code = f"sys.stdin = open('/dev/null'); {command('mcp')}"
    assert heavy_among(modules_after(code, tmp_path)) == []
