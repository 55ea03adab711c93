"""What `--help` shows of a command, and what is said where a word is not a command or an option is none."""

import re
import shlex
import shutil
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import typer

from gradcheck.cli.exit import FAILED, say, version
from gradcheck.errors import ConfigError, closest

# Heading -> names of the parameters below it.
GROUPS: Mapping[str, str] = {
    "Target and data": "arg data val_data column clip input loss optimizer lr device dtype script sandbox quiet_script replay",
    "Training": (
        "fast init_only offload steps repeats seed seeds budget watch overhead every stop_on on notify keep_spikes "
        "folds time_ordered workers"
    ),
    "Remedies": "fix write diff unsafe_fixes allow_dirty remedy search trials study",
    "Rules": "select ignore extend_select rules add_ignore tolerance",
    "Exit code": "fail_on max_warnings exit_zero allow_partial fail_on_new baseline no_baseline allow_stale",
    "Output": "output statistics format output_format open_page profile show_passed show_all save no_save attach color quiet",
    "Configuration": "config isolated",
}
OTHER = "Other"
TYPES = {"str": "NAME", "int": "N", "float": "NUMBER"}  # shown for options that name no word of their own

EXAMPLES: Mapping[str, Sequence[str]] = {
    "scan": (
        "gradcheck scan train.py",
        "gradcheck scan model.py:build --data batch.pt --loss cross_entropy",
        "gradcheck scan -- torchrun --nproc-per-node 2 train.py",
    ),
    "fix": ("gradcheck fix model.py", "gradcheck fix train.py --diff > fix.patch", "gradcheck fix train.py --write --unsafe-fixes"),
    "watch": (
        "gradcheck watch -- python train.py --epochs 3",
        "gradcheck watch --overhead 1% --stop-on error -- torchrun --nproc-per-node 2 train.py",
        "gradcheck watch --attach .gradcheck/last.json",
    ),
    "trial": (
        "gradcheck trial model.py",
        "gradcheck trial model.py --remedy l2,dropout --budget 300",
        "gradcheck trial model.py --output html:trial.html",
    ),
    "report": (
        "gradcheck report run.json",
        "gradcheck report run.json --output html:report.html",
        "gradcheck report run.json --fail-on warning",
    ),
    "diff": (
        "gradcheck diff base.json head.json",
        "gradcheck diff base.json head.json --fail-on-new",
        "gradcheck diff base.json head.json --format markdown",
    ),
    "bisect": (
        "gradcheck bisect before.py after.py",
        "gradcheck bisect 'python train.py' 'python train.py --compile' --steps 5",
        "gradcheck bisect train.py --save before.rec    # change train.py, then: gradcheck bisect before.rec train.py",
    ),
}
# What people type -> what does it; for a word without a command, the whole of it.
COMMANDS = {
    **dict.fromkeys("check lint run test train analyze analyse profile debug diagnose doctor inspect".split(), "scan"),
    "explain": "rule",
    **dict.fromkeys(("show", "view", "open"), "report"),
    **dict.fromkeys(("ui", "gui", "html", "page", "dashboard"), "report --open"),
    "compare": "diff",
    **dict.fromkeys(("monitor", "follow", "board", "live"), "watch"),
    **dict.fromkeys(("attach", "status"), "watch --attach"),
}
MISSING = {"rule": "NAME", "report": "RUN.json", "watch": "-- python train.py", "diff": "BASE.json HEAD.json"}  # else TARGET
WHOLE = {
    **dict.fromkeys(("list", "ls", "--list", "--list-rules", "--rules"), "gradcheck rules"),
    **dict.fromkeys(("config", "configure", "settings", "setup"), "gradcheck init"),
    **dict.fromkeys(("install", "update", "upgrade"), "python -m pip install --upgrade gradcheck"),
    **dict.fromkeys(("samples", "examples", "example"), "gradcheck demo --list"),
}
# Option that is none -> what does it; the first that the command has counts.
OPTIONS: Mapping[str, Sequence[str]] = {
    "--html": ("--output html:report.html",),
    "--json": ("--output json:run.json", "--output-format json"),
    "--sarif": ("--output sarif:gradcheck.sarif",),
    "--markdown": ("--output markdown",),
    **dict.fromkeys(("-o", "--out"), ("--output FORMAT:FILE",)),
    "--format": ("--output json", "--output-format json"),
    "--output": ("--format html", "--output-format json"),
    **dict.fromkeys(("--gpu", "--cuda"), ("--device cuda",)),
    "--cpu": ("--device cpu",),
    "--explain": ("gradcheck rule NAME",),
    "-m": ("-- python -m PACKAGE.MODULE",),
    **{name: (f"-- {name} N: the arguments of the script come after --",) for name in ("--epochs", "--batch-size")},
    **dict.fromkeys(("-v", "--verbose"), ("--show-passed", "gradcheck scan TARGET --show-passed")),
    **dict.fromkeys(("--no-color", "--no-colour"), ("--color never",)),
    **dict.fromkeys(("--strict", "--fail"), ("--fail-on warning",)),
    **dict.fromkeys(("--timeout", "--time", "--max-time"), ("--budget SECONDS",)),
    **dict.fromkeys(("--only", "--rule", "--enable"), ("--select RULE",)),
    **dict.fromkeys(("--disable", "--skip", "--exclude", "--ignore-rule"), ("--ignore RULE",)),
    **dict.fromkeys(("--dry-run", "--preview"), ("--diff",)),
    **dict.fromkeys(("-y", "--yes", "--apply", "-i", "--in-place"), ("--write",)),
    **dict.fromkeys(("--list", "--list-rules"), ("gradcheck rules",)),
}
SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": shutil.get_terminal_size().columns}


def give_up(message: str, hint: str) -> None:
    """One error and the next step, as for all that is wrong with what was typed."""
    say(ConfigError(message, hint=hint), "auto")
    sys.exit(FAILED)


class Command(typer.core.TyperCommand):
    """Options in groups, then examples."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        arguments = [row for p in self.params if p.param_type_name == "argument" and (row := p.get_help_record(ctx))]
        if arguments:
            with formatter.section("Arguments"):
                formatter.write_dl([(re.sub(r" <.*>$", "", left), right) for left, right in arguments])
        left_over = [p for p in self.get_params(ctx) if p.param_type_name != "argument"]
        grouped = {heading: [p for p in left_over if p.name in names.split()] for heading, names in GROUPS.items()}
        known = {p.name for found in grouped.values() for p in found}
        for heading, found in (*grouped.items(), (OTHER, [p for p in left_over if p.name not in known])):
            rows = [_row(record) for p in found if (record := p.get_help_record(ctx))]
            if rows:
                with formatter.section(heading if arguments or len(known) else "Options"):
                    formatter.write_dl(rows)

    def format_epilog(self, ctx: Any, formatter: Any) -> None:
        lines = EXAMPLES.get(ctx.info_name or "", ())
        if lines:
            with formatter.section("Examples"):
                formatter.write("".join(f"{'':>{formatter.current_indent}}{line}\n" for line in lines))
        super().format_epilog(ctx, formatter)

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            at = next((i for i, word in enumerate(given) if _starts_a_program(word)), None)
            if ctx.info_name == "watch" and ctx.obj is None and at is not None:
                give_up("the program to watch comes after --", shlex.join(["gradcheck", "watch", *given[:at], "--", *given[at:]]))
            name = getattr(error, "option_name", None)
            if name is not None and type(error).__name__ == "NoSuchOption":
                self._no_option(ctx, name)
            refuse(ctx, error)
            raise

    def _no_option(self, ctx: Any, name: str) -> None:
        every = _options(self, ctx)
        near = closest(name, [o for o in every if o.startswith("--")])
        hint = _instead(name, every) or (f"did you mean {near}?" if near else f"gradcheck {ctx.info_name} --help lists them")
        give_up(f"No such option: {name}", hint)


def _options(command: Any, ctx: Any) -> set[str]:
    return {o for p in command.get_params(ctx) for o in (*p.opts, *p.secondary_opts)}


def _instead(name: str, every: Collection[str]) -> str:
    """What does what an option that is none asks for; "" where nothing does. `every`: the options of the command."""
    return next((said for said in OPTIONS.get(name, ()) if said.split()[0] in every or not said.startswith("--") or said[2] == " "), "")


def _path(ctx: Any) -> list[str]:
    """`gradcheck baseline show`, word by word."""
    return [*_path(ctx.parent), ctx.info_name] if ctx.parent is not None else ["gradcheck"]


def refuse(ctx: Any, error: Any) -> None:
    """Ends with one line and the next step where the words do not fit; returns for any other error."""
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "UsageError" not in kinds or "NoArgsIsHelpError" in kinds:
        return
    near = [o for o in getattr(error, "possibilities", None) or () if o.startswith("--")]
    name, said = getattr(error, "option_name", ""), error.format_message().rstrip(".")
    hint = _instead(name, ()) or (ctx.parent is None and WHOLE.get(name)) or (f"did you mean {near[0]}?" if near else "")
    extra = re.search(r"extra argument.* \((\S+)\)$", said)
    if ctx.info_name == "rules" and extra:
        hint = f"gradcheck rule {shlex.quote(extra[1])}"
    give_up(said, hint or shlex.join([*_path(ctx), "--help"]))


class TakesArguments(Command):
    """What stands after `--` belongs to the script or program: it is left in `ctx.obj`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if "--" in args:
            place = args.index("--")
            ctx.obj, args = tuple(args[place + 1 :]), args[:place]
        return super().parse_args(ctx, args)


class CommandGroup(typer.core.TyperGroup):
    """All commands. A word that is none of them is answered with the command that does what it asks for."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            name = getattr(error, "option_name", None)
            if ctx.parent is None and name in _options(self.get_command(ctx, "scan"), ctx):
                give_up(f"No such option: {name}", shlex.join(["gradcheck", "scan", *given]))
            refuse(ctx, error)
            raise

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        word, rest = args[0], args[1:]
        if self.get_command(ctx, word) is None and not word.startswith("-"):
            if word == "version":
                version()
                sys.exit(0)
            if word == "help":
                return super().resolve_command(ctx, [*rest[:1], "--help"]) if rest else self._help(ctx)
            self._no_command(ctx, word, rest)
        return super().resolve_command(ctx, args)

    def _help(self, ctx: Any) -> Any:
        print(self.get_help(ctx))
        sys.exit(0)

    def _no_command(self, ctx: Any, word: str, rest: Sequence[str]) -> None:
        if word in WHOLE and ctx.parent is None:
            give_up(f"there is no command {word!r}", WHOLE[word])
        if word in COMMANDS and ctx.parent is None:
            name, *flags = COMMANDS[word].split()
            what = rest or MISSING.get(name, "TARGET").split()
            give_up(f"there is no command {word!r}", shlex.join(["gradcheck", name, *self._for(ctx, name, what), *flags]))
        if word.endswith(".json"):
            give_up(f"{word!r} is not a command", shlex.join(["gradcheck", "report", word, *rest]))
        if _names_a_target(word) and ctx.parent is None:
            words = ["--", word, *rest] if _starts_a_program(word) and ".py" not in word else self._for(ctx, "scan", [word, *rest])
            give_up(f"{word!r} is not a command", shlex.join(["gradcheck", "scan", *words]))
        if _names_a_rule(word):
            give_up(f"{word!r} is not a command", f"gradcheck rule {word}")
        near, path = closest(word, self.list_commands(ctx)), _path(ctx)
        hint = f"did you mean {shlex.join([*path, near])}?" if near else f"{shlex.join(path)} --help lists the commands"
        give_up(f"there is no command {word!r}", hint)

    def _for(self, ctx: Any, name: str, words: Sequence[str]) -> list[str]:
        """Words as a command takes them: an option that only a script can have comes after `--`."""
        every, found = _options(self.get_command(ctx, name), ctx), list[str]()
        for at, word in enumerate(words):
            flag = word.partition("=")[0]
            if word == "--":
                return [*found, *words[at:]]
            if flag.startswith("-") and flag not in every:
                said = _instead(flag, every)
                if not said.startswith("--output") and words[0].endswith(".py"):
                    return [*found, "--", *words[at:]]
                found += said.split() if said.startswith("--") and said[2] != " " else [word]
            else:
                found.append(word)
        return found


def _row(record: tuple[str, str]) -> tuple[str, str]:
    """The name of a type in place of its code."""
    left, right = record
    return re.sub(r" <(?:list\[)?(\w+)\]?[^>]*>$", lambda m: f" {TYPES.get(m[1], m[1].upper())}", left), right


def _names_a_target(word: str) -> bool:
    """Whether a word is what `scan` takes: a file, a folder, an import path, a program."""
    from pathlib import Path

    return ".py" in word or ".ipynb" in word or ":" in word or "/" in word or word == "." or Path(word).is_dir() or _starts_a_program(word)


def _names_a_rule(word: str) -> bool:
    from gradcheck.judge.registry import builtin_rules, find_rule

    return find_rule(word, builtin_rules()) is not None


def _starts_a_program(word: str) -> bool:
    name = word.rpartition("/")[2]
    return name.startswith("python") or name in ("torchrun", "accelerate") or word.endswith(".py")
