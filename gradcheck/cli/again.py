"""`gradcheck scan --watch`: the same scan again, in a process of its own, whenever a source file changes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

SUFFIXES = (".py", ".ipynb", ".toml")  # what a scan writes is none of these


def scan_again(words: Sequence[str], folder: Path = Path()) -> int:
    """Scans now, and after every change below the folder, until Ctrl-C; the last exit code. Raises ConfigError without watchfiles."""
    from gradcheck.errors import ConfigError

    try:
        from watchfiles import DefaultFilter, watch
    except ModuleNotFoundError as error:
        raise ConfigError("--watch needs the package watchfiles", hint="pip install 'gradcheck[watch]'") from error

    class Sources(DefaultFilter):
        def __call__(self, change: object, path: str) -> bool:
            return path.endswith(SUFFIXES) and super().__call__(change, path)

    command = [sys.executable, "-P", "-m", "gradcheck", *without_watch(words)]
    code = _scanned(command)
    for changes in watch(folder, watch_filter=Sources(), raise_interrupt=False):
        names = sorted({os.path.relpath(path, folder) for _, path in changes})
        print(f"\n--- {', '.join(names[:3])} changed ---\n", file=sys.stderr)
        code = _scanned(command)
    return code


def without_watch(words: Sequence[str]) -> list[str]:
    """The arguments of the command without `--watch`; what comes after `--` belongs to the script."""
    end = list(words).index("--") if "--" in words else len(words)
    return [word for i, word in enumerate(words) if word != "--watch" or i > end]


def _scanned(command: Sequence[str]) -> int:
    code = subprocess.run(command).returncode
    print("\nwaiting for changes; Ctrl-C ends", file=sys.stderr)
    return code
