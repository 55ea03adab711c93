"""The commands `mcp` and `server`: gradcheck for agents and for editors, over stdin and stdout."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from gradcheck import interrupts
from gradcheck.cli.exit import complain, exits


def mcp(
    allow_write: Annotated[bool, typer.Option("--allow-write", help="The tool `fix` may write edits into the source.")] = False,
) -> None:
    """Serve agents over stdio (Model Context Protocol): scan, fix, explain, report, diff. Needs gradcheck[mcp]."""
    with exits(), _serving("mcp", "mcp"):
        from gradcheck.integrations.mcp import serve

        serve(allow_write=allow_write)


def server() -> None:
    """Serve editors over stdio (Language Server Protocol): findings of saved runs. Scans nothing. Needs gradcheck[lsp]."""
    with exits(), _serving("pygls", "lsp"):
        from gradcheck.integrations.lsp import serve

        serve()


@contextmanager
def _serving(package: str, extra: str) -> Iterator[None]:
    """Raises ConfigError with the line that installs what is missing."""
    from gradcheck.errors import ConfigError

    try:
        yield
    except KeyboardInterrupt:  # scans that are going on have been ended
        complain("interrupted")
        os._exit(interrupts.exit_code())  # a thread waits for the client's next word, and Python would wait for the thread
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in (package, "anyio", "mcp_types", "lsprotocol"):
            raise
        raise ConfigError(f"this command needs the package {error.name}", hint=f"pip install 'gradcheck[{extra}]'") from error
