"""What the site needs beyond the pages: CONTRIBUTING.md, which lies outside of docs/."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

OUTSIDE = Path(__file__).resolve().parents[1] / "CONTRIBUTING.md"


def on_files(files: Files, config: Any) -> Files:
    text = OUTSIDE.read_text(encoding="utf-8").replace("](docs/", "](")
    files.append(File.generated(config, "contributing.md", content=text))
    return files


def on_page_markdown(markdown: str, **more: Any) -> str:
    return markdown.replace("](../CONTRIBUTING.md)", "](contributing.md)")
