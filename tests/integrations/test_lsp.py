"""`gradcheck server`, driven by the client of pygls over stdio."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pygls.lsp.client")

from lsprotocol import types as lsp
from pygls.lsp.client import LanguageClient

from tests.test_cli_light import command, heavy_among, modules_after

ROOT = Path(__file__).resolve().parents[2]
ENV = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])}


@pytest.fixture(scope="module")
def treated(tmp_path_factory):
    """A project with a faulty model, and a saved run of `gradcheck fix` with a proved edit."""
    folder = tmp_path_factory.mktemp("project")
    shutil.copy(ROOT / "sample_models" / "faulty" / "zero_gradient.py", folder / "model.py")
    words = [sys.executable, "-m", "gradcheck", "fix", "model.py", "--budget", "10", "--output", "json:run.json", "--output", "brief"]
    subprocess.run(words, cwd=folder, env=ENV, capture_output=True, text=True)
    assert (folder / "run.json").exists()
    return folder


@pytest.fixture
def project(treated, tmp_path):
    shutil.copytree(treated, tmp_path / "project")
    return tmp_path / "project"


class Editor:
    """A client with one open document."""

    def __init__(self, folder, name="model.py"):
        self.folder, self.file = folder, folder / name
        self.uri, self.version = self.file.as_uri(), 1
        self.client = LanguageClient("test", "1")
        self.heard = asyncio.Queue()

        @self.client.feature(lsp.TEXT_DOCUMENT_PUBLISH_DIAGNOSTICS)
        def published(params):
            self.heard.put_nowait(params)

    async def __aenter__(self):
        os.environ["PYTHONPATH"] = ENV["PYTHONPATH"]
        await self.client.start_io(sys.executable, "-m", "gradcheck", "server")
        capabilities = lsp.ClientCapabilities()
        params = lsp.InitializeParams(capabilities, process_id=os.getpid(), root_uri=self.folder.as_uri())
        self.answer = await self.client.initialize_async(params)
        self.client.initialized(lsp.InitializedParams())
        return self

    async def __aexit__(self, *details):
        await self.client.shutdown_async(None)
        self.client.exit(None)
        await self.client.stop()

    async def open(self):
        item = lsp.TextDocumentItem(self.uri, "python", self.version, self.file.read_text())
        self.client.text_document_did_open(lsp.DidOpenTextDocumentParams(item))
        return await self.diagnostics()

    async def type(self, text):
        self.version += 1
        document = lsp.VersionedTextDocumentIdentifier(self.version, self.uri)
        whole = lsp.TextDocumentContentChangeWholeDocument(text)
        self.client.text_document_did_change(lsp.DidChangeTextDocumentParams(document, [whole]))
        return await self.diagnostics()

    async def diagnostics(self):
        return list((await asyncio.wait_for(self.heard.get(), 20)).diagnostics)

    async def actions(self, diagnostic):
        document = lsp.TextDocumentIdentifier(self.uri)
        params = lsp.CodeActionParams(document, diagnostic.range, lsp.CodeActionContext([diagnostic]))
        return await self.client.text_document_code_action_async(params)


def edited(text, edits):
    lines = text.splitlines(keepends=True)
    for edit in sorted(edits, key=lambda e: -e.range.start.line):
        start, end = edit.range.start, edit.range.end
        if end.character:
            assert start == end
            line = lines[start.line].rstrip("\n")
            lines[start.line] = line[: start.character] + edit.new_text + line[start.character :] + "\n"
        else:
            lines[start.line : end.line] = [edit.new_text]
    return "".join(lines)


def test_findings_stand_at_their_lines_and_go_when_the_expression_changes(project):
    async def main():
        async with Editor(project) as editor:
            text = editor.file.read_text()
            (found,) = await editor.open()
            line = text.splitlines()[found.range.start.line]
            assert "torch.sign(" in line[found.range.start.character : found.range.end.character]
            assert (found.code, found.source, found.severity) == ("zero-gradient", "gradcheck", lsp.DiagnosticSeverity.Error)
            (moved,) = await editor.type("\n# one line more\n" + text)
            assert moved.range.start.line == found.range.start.line + 2
            assert await editor.type(text.replace("torch.sign(", "torch.tanh(")) == []
            ignored = text.replace(line, f"{line}  # gradcheck: ignore[zero-gradient]")
            assert await editor.type(ignored) == []
            assert len(await editor.type(text)) == 1

    asyncio.run(main())


def test_hovering_shows_the_page_of_the_rule(project):
    async def main():
        async with Editor(project) as editor:
            (found,) = await editor.open()
            document = lsp.TextDocumentIdentifier(editor.uri)
            shown = await editor.client.text_document_hover_async(lsp.HoverParams(document, found.range.start))
            assert "zero-gradient (GRAD004)" in shown.contents.value and "## When to ignore it" in shown.contents.value
            assert await editor.client.text_document_hover_async(lsp.HoverParams(document, lsp.Position(0, 0))) is None

    asyncio.run(main())


def test_a_proved_edit_and_an_ignore_comment_are_offered_and_remove_the_finding(project):
    async def main():
        async with Editor(project) as editor:
            text = editor.file.read_text()
            (found,) = await editor.open()
            mend, ignore = await editor.actions(found)
            assert "proved by paired training" in mend.title and mend.is_preferred
            after = edited(text, mend.edit.changes[editor.uri])
            compile(after, "model.py", "exec")
            assert "(torch.sign(x) - x.clamp(-1, 1)).detach()" in after
            assert await editor.type(after) == []
            assert len(await editor.type(text)) == 1
            silenced = edited(text, ignore.edit.changes[editor.uri])
            assert "# gradcheck: ignore[zero-gradient]" in silenced
            assert await editor.type(silenced) == []
            # where the lines have changed, the edit is not offered
            (still,) = await editor.type(text.replace("import torch\n", "import torch  # 1\nimport math\n", 1))
            assert [a.title for a in await editor.actions(still)] == ["Ignore zero-gradient on this line"]

    asyncio.run(main())


def test_it_scans_nothing_and_says_nothing_of_other_files(project):
    (project / "other.py").write_text("x = 1\n")

    async def main():
        async with Editor(project, "other.py") as editor:
            assert await editor.open() == []

    before = sorted(path.name for path in project.iterdir())
    asyncio.run(main())
    assert sorted(path.name for path in project.iterdir()) == before


def test_a_file_that_is_gone_and_diagnostics_of_other_shapes_are_answered(tmp_path):
    (tmp_path / "other.py").write_bytes(b"x = '\xff'\n")

    async def main():
        async with Editor(tmp_path, "other.py") as editor:
            for uri in (editor.uri, (tmp_path / "gone.py").as_uri(), "untitled:Untitled-1"):
                document, at = lsp.TextDocumentIdentifier(uri), lsp.Position(0, 0)
                assert await editor.client.text_document_hover_async(lsp.HoverParams(document, at)) is None
                odd = lsp.Diagnostic(lsp.Range(at, at), "x", code=3, source="gradcheck", data="text")
                params = lsp.CodeActionParams(document, odd.range, lsp.CodeActionContext([odd]))
                assert await editor.client.text_document_code_action_async(params) == ()
            editor.file.write_text("x = 1\n")
            assert [a.title for a in await editor.actions(odd)] == ["Ignore 3 on this line"]

    asyncio.run(main())


def test_the_server_starts_without_torch(tmp_path):
    code = f"sys.stdin = open('/dev/null'); {command('server')}"
    assert heavy_among(modules_after(code, tmp_path)) == []


def test_a_message_that_is_no_json_is_one_line():
    words = [sys.executable, "-m", "gradcheck", "server"]
    said = subprocess.run(words, input=b"Content-Length: 5\r\n\r\n{bad}", env=ENV, capture_output=True, timeout=60).stderr.decode()
    assert said.startswith("gradcheck: ") and said.count("\n") == 1 and "JSONDecodeError" in said
