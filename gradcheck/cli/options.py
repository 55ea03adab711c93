"""The options of the commands, each declared once; `groups.py` puts together what several commands take."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

if TYPE_CHECKING:
    from gradcheck.config.settings import Settings


def rule_words(incomplete: str) -> list[str]:
    """Names of rules and families that begin with the last word of a comma-separated list."""
    from gradcheck.judge.registry import builtin_rules

    before, comma, word = incomplete.rpartition(",")
    words = [*(rule.name for rule in builtin_rules()), *dict.fromkeys(rule.family for rule in builtin_rules())]
    return [f"{before}{comma}{each}" for each in words if each.startswith(word)]


def rule_name(incomplete: str) -> list[str]:
    """Names of rules, or codes where the word begins with a capital letter."""
    from gradcheck.judge.registry import builtin_rules

    words = (rule.code if incomplete[:1].isupper() else rule.name for rule in builtin_rules())
    return [word for word in words if word.startswith(incomplete)]


def format_name(incomplete: str) -> list[str]:
    from gradcheck.report.outputs import FORMATS

    return [name for name in FORMATS if name.startswith(incomplete)]


Texts = list[str] | None

# ------------------------------------------------------------------------- what is scanned
Target = Annotated[
    str | None, typer.Argument(metavar="TARGET", help="model.py, model.py:name, package.module:name, train.py [-- ARGUMENTS].")
]
Targets = Annotated[
    Texts, typer.Argument(metavar="TARGET", help="model.py, model.py:name, package.module:name, train.py [-- ARGUMENTS], nb.ipynb.")
]
Arg = Annotated[Texts, typer.Option(metavar="KEY=VALUE", help="An argument for the model's class or factory.")]
Data = Annotated[str | None, typer.Option(metavar="FILE", help="Data: .pt, .safetensors, .npz, .csv, images, or FILE.py:name.")]
ValData = Annotated[str | None, typer.Option(metavar="FILE", help="Validation data.")]
Input = Annotated[Texts, typer.Option(metavar="TYPE[SHAPE]", help="A synthetic input: float32[32,3,224,224].")]
Loss = Annotated[str | None, typer.Option(help="cross_entropy, mse_loss, ..., or FILE.py:name.")]
Optimizer = Annotated[str | None, typer.Option(help="sgd, adam, adamw, ..., or FILE.py:name.")]
LearningRate = Annotated[float | None, typer.Option(help="Learning rate.")]
Device = Annotated[str | None, typer.Option(help="auto, cpu, cuda, cuda:1, mps, xpu, ... [default: auto]")]
Dtype = Annotated[str | None, typer.Option(help="float32, bf16, fp16, float64.")]
Script = Annotated[bool, typer.Option("--script", help="Treat TARGET as a training script. [default: what its source says]")]
Sandbox = Annotated[bool, typer.Option("--sandbox", help="Run the script in a mirror of its folder, which keeps its output.")]
QuietScript = Annotated[bool, typer.Option("--quiet-script", help="Drop what the script prints.")]
Replay = Annotated[str, typer.Option(metavar="FILE", help="Run the script on the batch of a spike: see `watch --keep-spikes`.")]
UnsafeFixes = Annotated[bool, typer.Option("--unsafe-fixes", help="Also what changes the model, the loss, or what checkpoints hold.")]

# ------------------------------------------------------------------------- rules and configuration
Select = Annotated[
    Texts, typer.Option(metavar="RULES", help="Rules to run: names, codes, families (GRAD) or ALL.", autocompletion=rule_words)
]
Ignore = Annotated[Texts, typer.Option(metavar="RULES", help="Rules to leave out.", autocompletion=rule_words)]
ExtendSelect = Annotated[Texts, typer.Option(metavar="RULES", help="Rules to run besides the selected ones.", autocompletion=rule_words)]
RulePaths = Annotated[Texts, typer.Option("--rules", metavar="PATH", help="A file or folder with rules of your own.")]
Config = Annotated[Texts, typer.Option(metavar="FILE|'KEY = VALUE'", help="A configuration file, or a setting over it.")]
Isolated = Annotated[bool, typer.Option("--isolated", help="Ignore configuration files.")]
RuleName = Annotated[
    str, typer.Argument(metavar="NAME|CODE", help="A rule, such as vanishing-gradient or GRAD001.", autocompletion=rule_name)
]
TextOrJson = Annotated[str, typer.Option("--output", "--output-format", metavar="text|json")]

Column = Annotated[Texts, typer.Option(metavar="ROLE=NAME", help="Of a log: the column that is its loss, evaluation, rate, norm or scale.")]

# ------------------------------------------------------------------------- the exit code
FailOn = Annotated[str | None, typer.Option(metavar="error|warning|info|never", help="Exit 1 for findings of this level. [default: error]")]
ExitZero = Annotated[bool, typer.Option("--exit-zero", help="Exit 0 also when there are findings.")]
AllowPartial = Annotated[bool, typer.Option("--allow-partial", help="Do not fail when a run could only be judged in part.")]
MaxWarnings = Annotated[int | None, typer.Option(metavar="N", help="Exit 1 when there are more warnings than this.")]
BaselineFile = Annotated[str | None, typer.Option("--baseline", metavar="FILE", help="Known findings. [default: .gradcheck-baseline.json]")]
NoBaseline = Annotated[bool, typer.Option("--no-baseline", help="Show known findings too.")]
AllowStale = Annotated[bool, typer.Option("--allow-stale", help="Do not fail for entries of the baseline whose findings are gone.")]

# ------------------------------------------------------------------------- what is shown
Output = Annotated[
    Texts,
    typer.Option(
        metavar="FORMAT[:PATH]",
        help="full (default), json, sarif, junit, ..., to stdout or a file. May be repeated.",
        autocompletion=format_name,
    ),
]
OpenPage = Annotated[bool, typer.Option("--open", help="Open the report in the web browser; see --output html:PATH.")]
Profile = Annotated[bool, typer.Option("--profile", help="Show what each layer costs, and what fp16 and fp8 could not hold.")]
ShowPassed = Annotated[bool, typer.Option("--show-passed", help="Show the state of every rule, and what was found by convention.")]
ShowAll = Annotated[bool, typer.Option("--show-all", help="Show all layers in the profile.")]
Statistics = Annotated[bool, typer.Option("--statistics", help="In place of the findings, how many each rule has, over all targets.")]
AddIgnore = Annotated[bool, typer.Option("--add-ignore", help="Write comments that ignore the findings at their lines.")]
Color = Annotated[str, typer.Option(metavar="auto|always|never", help="Colours.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")]

COLORS = ("auto", "always", "never")


def split(words: list[str] | None) -> list[str] | None:
    """`--select GRAD,INIT --select dead-units` as one list."""
    return None if words is None else [w.strip() for word in words for w in word.split(",") if w.strip()]


def columns_of(column: Texts) -> dict[str, str]:
    """`--column loss=train/loss` as a mapping. Raises ConfigError for anything else."""
    from gradcheck.errors import ConfigError
    from gradcheck.logs.table import ROLES

    pairs = dict(word.partition("=")[::2] for word in column or ())
    for role, name in pairs.items():
        if role not in ROLES or not name:
            raise ConfigError(f"--column {role}={name}: no such column of a log", hint=f"--column ROLE=NAME; roles: {', '.join(ROLES)}")
    return pairs


def settings_of(config: list[str] | None, isolated: bool, **flags: Any) -> Settings:
    from gradcheck.config.settings import load

    return load(config=config or (), isolated=isolated).with_flags(**flags)


def checked_color(color: str) -> Literal["auto", "always", "never"]:
    """Raises ConfigError for any other word."""
    from gradcheck.errors import ConfigError

    if color not in COLORS:
        raise ConfigError(f"--color must be auto, always or never; got {color!r}", hint="--color never")
    return cast(Literal["auto", "always", "never"], color)
