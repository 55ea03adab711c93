"""`gradcheck server`: findings of saved runs in an editor (Language Server Protocol over stdio). It scans nothing.

The runs are those in the project's folder and in its `.gradcheck/`, as `gradcheck scan --output json:PATH`, `watch` and `mcp` save them.
"""

import logging
import os
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lsprotocol import types as lsp
from pygls.lsp.server import LanguageServer
from pygls.uris import from_fs_path

from gradcheck import interrupts
from gradcheck.analysis.wording import reason
from gradcheck.config.settings import load
from gradcheck.errors import GradcheckError
from gradcheck.judge.judge import judge_again
from gradcheck.judge.registry import builtin_rules, find_rule
from gradcheck.report.formatting import clean, measured, tree
from gradcheck.report.in_editor import applies, changes, placed, proved
from gradcheck.report.rule_page import rule_page
from gradcheck.report.saved_runs import FOLDER, saved_runs
from gradcheck.types.finding import Finding
from gradcheck.types.fix import Outcome
from gradcheck.types.location import Location
from gradcheck.types.report import Report
from gradcheck.version import __version__

SEVERITIES = {"error": lsp.DiagnosticSeverity.Error, "warning": lsp.DiagnosticSeverity.Warning, "info": lsp.DiagnosticSeverity.Information}
SOURCE = "gradcheck"


def serve() -> None:
    """Answers on stdin and stdout until the editor closes them."""
    interrupts.at_once()  # pygls would wait for what the editor sends next
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logging.getLogger("pygls").addHandler(handler)
    server().start_io()


class _OneLine(logging.Formatter):
    """Of what an editor sent, and cannot be read, the reason and its place: no traceback through the server."""

    def format(self, record: logging.LogRecord) -> str:
        error = record.exc_info[1] if record.exc_info else None
        last = traceback.extract_tb(error.__traceback__)[-1:] if error is not None else []
        where = f" ({type(error).__name__}: {error}; {last[0].filename}:{last[0].lineno})" if last else ""
        return clean(f"gradcheck: {record.getMessage().splitlines()[0]}{where}")


@dataclass(frozen=True)
class PlacedFinding:
    """A finding at its present place in a document."""

    report: Report
    finding: Finding
    below: tuple[Finding, ...]
    place: Location


class Runs:
    """The saved runs of a project, judged with its settings; read again when a file of theirs has changed."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._stamp: object = None
        self._newest: list[Report] = []
        self._every: list[Report] = []

    def newest(self) -> list[Report]:
        """The newest run of each target."""
        self._read()
        return self._newest

    def outcomes(self) -> Iterator[Outcome]:
        """The outcomes that any saved run has proved."""
        self._read()
        return (outcome for report in self._every for outcome in proved(report))

    def _read(self) -> None:
        files = [path for folder in (self.root, self.root / FOLDER) for path in (*folder.glob("*.json"), *folder.glob("*.toml"))]
        stamp = sorted((str(path), path.stat().st_mtime_ns) for path in files if path.is_file())
        if stamp == self._stamp:
            return
        self._stamp = stamp
        self._every = [report for _, report in saved_runs(self.root)]
        newest: dict[str, Report] = {}
        for report in self._every:
            newest.setdefault(report.target, report)
        try:
            settings = load(self.root)
            self._newest = [judge_again(report, settings) for report in newest.values()]
        except GradcheckError:  # a mistake in the configuration, or the project's own rules: keep them as they were judged
            self._newest = list(newest.values())

    def marks(self, path: str, lines: Sequence[str]) -> list[PlacedFinding]:
        """The findings of a file that are still where they were, or stand at a line that reads the same."""
        found = []
        for report in self.newest():
            for finding, below in tree(report.findings):
                if finding.location is not None and self.is_file(finding.location.path, path):
                    place = placed(report, finding, lines)
                    found += [PlacedFinding(report, finding, tuple(below), place)] if place is not None else []
        return found

    def is_file(self, shown: str, path: str) -> bool:
        return os.path.realpath(self.root / shown) == os.path.realpath(path)


def server() -> LanguageServer:
    """The server with what it answers."""
    made = LanguageServer("gradcheck", __version__, text_document_sync_kind=lsp.TextDocumentSyncKind.Incremental)
    runs: list[Runs] = []

    def known() -> Runs:
        if not runs:
            runs.append(Runs(Path(made.workspace.root_path or Path.cwd())))
        return runs[0]

    def publish(uri: str) -> None:
        if document := _readable(made, uri):
            found = [_diagnostic(known(), mark, document) for mark in known().marks(document.path, document.lines)]
            made.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(uri, found, document.version))

    def publish_all() -> None:
        for uri in list(made.workspace.text_documents):
            publish(uri)

    @made.feature(lsp.INITIALIZED)
    def initialized(params: lsp.InitializedParams) -> None:
        _ask_for_changes(made)

    @made.feature(lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES)
    def saved(params: lsp.DidChangeWatchedFilesParams) -> None:
        publish_all()

    @made.feature(lsp.TEXT_DOCUMENT_DID_OPEN)
    def opened(params: lsp.DidOpenTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @made.feature(lsp.TEXT_DOCUMENT_DID_CHANGE)
    def changed(params: lsp.DidChangeTextDocumentParams) -> None:
        publish(params.text_document.uri)

    @made.feature(lsp.TEXT_DOCUMENT_DID_SAVE)
    def stored(params: lsp.DidSaveTextDocumentParams) -> None:
        publish_all()

    @made.feature(lsp.TEXT_DOCUMENT_DID_CLOSE)
    def closed(params: lsp.DidCloseTextDocumentParams) -> None:
        made.text_document_publish_diagnostics(lsp.PublishDiagnosticsParams(params.text_document.uri, []))

    @made.feature(lsp.TEXT_DOCUMENT_HOVER)
    def hover(params: lsp.HoverParams) -> lsp.Hover | None:
        document = _readable(made, params.text_document.uri)
        for mark in known().marks(document.path, document.lines) if document else ():
            span = _span(mark.place, document)
            if _holds(span, params.position):
                return lsp.Hover(lsp.MarkupContent(lsp.MarkupKind.Markdown, _explained(mark)), span)
        return None

    @made.feature(lsp.TEXT_DOCUMENT_CODE_ACTION, lsp.CodeActionOptions([lsp.CodeActionKind.QuickFix]))
    def actions(params: lsp.CodeActionParams) -> list[lsp.CodeAction]:
        document, ours = _readable(made, params.text_document.uri), [d for d in params.context.diagnostics if d.source == SOURCE]
        return [action for d in ours for action in _actions(known(), made, document, d)] if document else []

    return made


def _readable(made: LanguageServer, uri: str) -> Any:
    """The document; None where it is no file, or none that can be read: an editor may ask of one that was deleted."""
    document = made.workspace.get_text_document(uri)
    try:
        return document if document.path and document.lines is not None else None
    except (OSError, ValueError):
        return None


def _ask_for_changes(server: LanguageServer) -> None:
    """Asks an editor that can tell to say when runs or settings are written."""
    able = server.client_capabilities.workspace
    if able is not None and able.did_change_watched_files is not None and able.did_change_watched_files.dynamic_registration:
        watchers = [lsp.FileSystemWatcher("**/*.json"), lsp.FileSystemWatcher("**/*.toml")]
        options = lsp.DidChangeWatchedFilesRegistrationOptions(watchers)
        wish = lsp.Registration("runs", lsp.WORKSPACE_DID_CHANGE_WATCHED_FILES, options)
        server.client_register_capability(lsp.RegistrationParams([wish]))


def _diagnostic(runs: Runs, mark: PlacedFinding, document: Any) -> lsp.Diagnostic:
    f = mark.finding
    more = [
        lsp.DiagnosticRelatedInformation(
            lsp.Location(_uri(runs, below.location.path), lsp.Range(start := lsp.Position(below.location.line - 1, 0), start)),
            clean(f"follows: {below.name} ({below.code}) {below.message}"),
        )
        for below in mark.below
        if below.location is not None
    ]
    lines = [f.message, *(f"measured: {measured(e)}" for e in f.evidence[:1]), *(f"help: {r.text}" for r in f.remedies)]
    message = "\n".join(map(clean, lines))
    return lsp.Diagnostic(_span(mark.place, document), message, SEVERITIES[f.severity], f.name, None, SOURCE, None, more, {"code": f.code})


def _uri(runs: Runs, path: str) -> str:
    return str(from_fs_path(os.path.realpath(runs.root / path)))


def _span(place: Location, document: Any) -> lsp.Range:
    """In the units that the client counts in."""
    last = max(place.end_line, place.line)
    end = place.end_column - 1 if place.end_column else len(document.lines[last - 1].rstrip("\r\n")) if last <= len(document.lines) else 0
    span = lsp.Range(lsp.Position(place.line - 1, place.column - 1), lsp.Position(last - 1, end))
    converted: lsp.Range = document.position_codec.range_to_client_units(document.lines, span)
    return converted


def _holds(span: lsp.Range, at: lsp.Position) -> bool:
    start, end = span.start, span.end
    return (start.line, start.character) <= (at.line, at.character) <= (end.line, end.character)


def _explained(mark: PlacedFinding) -> str:
    """The finding, and the page of its rule."""
    rule = find_rule(mark.finding.code, builtin_rules())
    head = f"**{mark.finding.name}** {mark.finding.severity}: {clean(mark.finding.message)}"
    return f"{head}\n\n---\n\n{rule_page(rule)}" if rule is not None else head


def _actions(runs: Runs, made: LanguageServer, document: Any, diagnostic: lsp.Diagnostic) -> Iterator[lsp.CodeAction]:
    code = diagnostic.data.get("code") if isinstance(diagnostic.data, dict) else None
    quick, seen = lsp.CodeActionKind.QuickFix, set()
    for outcome in runs.outcomes():
        if code in outcome.prescription.findings and outcome.diff not in seen:
            seen.add(outcome.diff)
            edit = _edit(runs, made, outcome.diff)
            if edit is not None:
                fix = outcome.prescription
                unsafe = f" ({reason(fix.treatment)})" if fix.applicability == "unsafe" else ""
                title = f"{clean(fix.text)}: proved by paired training{unsafe}"
                yield lsp.CodeAction(title, quick, [diagnostic], is_preferred=not unsafe, edit=edit)
    line = diagnostic.range.start.line
    text = document.lines[line].rstrip("\r\n") if line < len(document.lines) else ""
    at = lsp.Position(line, document.position_codec.client_num_units(text))
    ignore = lsp.TextEdit(lsp.Range(at, at), f"  # gradcheck: ignore[{diagnostic.code}]")
    title = f"Ignore {diagnostic.code} on this line"
    yield lsp.CodeAction(title, quick, [diagnostic], edit=lsp.WorkspaceEdit({document.uri: [ignore]}))


def _edit(runs: Runs, made: LanguageServer, diff: str) -> lsp.WorkspaceEdit | None:
    """A patch as edits of whole lines; None where a file has changed at one of its places."""
    edits: dict[str, list[lsp.TextEdit]] = {}
    for change in changes(diff):
        uri = _uri(runs, change.path)
        document = _readable(made, uri)
        lines = [text.rstrip("\r\n") for text in document.lines] if document else []
        if not applies(change, lines):
            return None
        span = lsp.Range(lsp.Position(change.start - 1, 0), lsp.Position(change.start - 1 + len(change.old), 0))
        edits.setdefault(uri, []).append(lsp.TextEdit(span, "".join(f"{text}\n" for text in change.new)))
    return lsp.WorkspaceEdit(edits) if edits else None
