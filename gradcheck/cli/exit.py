"""What every command shares: exit codes, errors in words, settings, and the answers that need no typer."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gradcheck.errors import GradcheckError

FOUND, FAILED, INTERRUPTED = 1, 2, 130


def version() -> None:
    from gradcheck.version import __version__

    print(f"gradcheck {__version__}")


def explain(name: str, output_format: str = "text", paths: list[str] | None = None) -> None:
    """Prints a rule's page. The built-in rules are looked through first: installed packs take longer to find."""
    from gradcheck.judge.registry import builtin_rules, find_rule, load_rules
    from gradcheck.report.rule_page import rule_facts, rule_page

    text = wants_text(output_format)
    found = find_rule(name, builtin_rules())
    if found is None:
        from gradcheck.config.settings import load
        from gradcheck.judge.select import unknown

        every = load_rules(load(isolated=False).with_flags(rule_paths=paths).rule_paths)
        found = find_rule(name, every)
        if found is None:
            raise unknown(name, every)
    if text:
        print(rule_page(found))
    else:
        import json

        print(json.dumps(rule_facts(found), indent=2))


@contextmanager
def exits(color: str = "auto") -> Iterator[None]:
    """Turns what can go wrong into one message on stderr and an exit code."""
    from gradcheck.errors import GradcheckError

    try:
        yield
    except GradcheckError as e:
        say(e, color)
        sys.exit(FAILED)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        raise
    except Exception as e:
        import traceback

        traceback.print_exc()
        print(f"error: gradcheck failed: {type(e).__name__}: {e}", file=sys.stderr)
        print("help: this is a bug in gradcheck; please report it with the lines above", file=sys.stderr)
        sys.exit(FAILED)


def wants_text(output_format: str) -> bool:
    from gradcheck.errors import ConfigError

    if output_format not in ("text", "json"):
        raise ConfigError(f"--output must be text or json; got {output_format!r}")
    return output_format == "text"


def say(error: GradcheckError, color: str) -> None:
    from gradcheck.report.progress_bar import print_error

    print_error(error, "always" if color == "always" else "never" if color == "never" else "auto")
