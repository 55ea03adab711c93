"""Groups of options that several commands take: declared once, and given to a command as one object each."""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any, get_type_hints

from gradcheck.cli import options

if TYPE_CHECKING:
    from gradcheck.capture.spec import ScriptSpec
    from gradcheck.cli.gate import Known
    from gradcheck.config.settings import Settings
    from gradcheck.report.outputs import Output as Written
    from gradcheck.types.report import Report


@dataclass(frozen=True)
class PartOptions:
    """What a model is trained with."""

    arg: options.Arg = None
    data: options.Data = None
    val_data: options.ValData = None
    input: options.Input = None
    loss: options.Loss = None
    optimizer: options.Optimizer = None
    lr: options.LearningRate = None

    @property
    def flags(self) -> dict[str, Any]:
        inputs = tuple(self.input or ())
        data = {"data": self.data, "val_data": self.val_data, "inputs": inputs}
        return data | {"loss": self.loss, "optimizer": self.optimizer, "lr": self.lr}

    @property
    def named(self) -> dict[str, Any]:
        """By the names that the user gave them."""
        own = {f"--{name.replace('_', '-')}".replace("--inputs", "--input"): value for name, value in self.flags.items()}
        return {"--arg": self.arg, **own}


@dataclass(frozen=True)
class ScriptOptions:
    """How a script is run."""

    script: options.Script = False
    sandbox: options.Sandbox = False
    quiet_script: options.QuietScript = False
    replay: options.Replay = ""

    def spec(self, arguments: tuple[str, ...] | None, steps: int | None = None, budget: float | None = None) -> ScriptSpec:
        """Of a script that is still to be named."""
        from gradcheck.capture.spec import ScriptSpec

        return ScriptSpec("", arguments or (), steps, budget, self.sandbox, self.quiet_script, replay=self.replay)


@dataclass(frozen=True)
class RuleOptions:
    """Which rules run."""

    select: options.Select = None
    ignore: options.Ignore = None
    extend_select: options.ExtendSelect = None
    rules: options.RulePaths = None

    @property
    def choice(self) -> dict[str, list[str] | None]:
        """As settings."""
        chosen = {
            "select": options.split(self.select),
            "ignore": options.split(self.ignore),
            "extend_select": options.split(self.extend_select),
        }
        return chosen | {"rule_paths": self.rules}


@dataclass(frozen=True)
class GateOptions:
    """When the exit code says that something was found."""

    fail_on: options.FailOn = None
    exit_zero: options.ExitZero = False
    allow_partial: options.AllowPartial = False

    @property
    def flags(self) -> dict[str, Any]:
        return {"fail_on": self.fail_on, "allow_partial": self.allow_partial or None}


@dataclass(frozen=True)
class BaselineOptions:
    """Which findings are known, and how many warnings may be left."""

    max_warnings: options.MaxWarnings = None
    baseline: options.BaselineFile = None
    no_baseline: options.NoBaseline = False
    allow_stale: options.AllowStale = False

    def known(self, settings: Settings, isolated: bool) -> Known | None:
        """Raises ConfigError when the baseline cannot be read: before anything is scanned."""
        from gradcheck.cli.gate import baseline_path, load_known

        return load_known(None if self.no_baseline else baseline_path(settings, self.baseline, isolated=isolated))


@dataclass(frozen=True)
class OutputOptions:
    """Where the report goes."""

    output: options.Output = None
    open_page: options.OpenPage = False

    def parsed(self, *first: str, inputs: Sequence[str] = ()) -> tuple[Written, ...]:
        """`first`: formats before these. `inputs`: files that no output may replace."""
        from gradcheck.report.outputs import parse_outputs

        return parse_outputs([*first, *(self.output or ())], opened=self.open_page, inputs=inputs)

    def open(self, reports: Sequence[Report], places: Sequence[Written]) -> None:
        """In the browser, where that was asked for."""
        if self.open_page:
            from gradcheck.report.outputs import open_reports

            open_reports(reports, places)


@dataclass(frozen=True)
class ViewOptions:
    """How much of it is shown."""

    profile: options.Profile = False
    show_passed: options.ShowPassed = False
    show_all: options.ShowAll = False
    statistics: options.Statistics = False
    add_ignore: options.AddIgnore = False

    def write(self, reports: Sequence[Report], places: Sequence[Written], settings: Settings, color: str) -> None:
        """The outputs; statistics take the place of what goes to stdout."""
        from gradcheck.report.formatting import View
        from gradcheck.report.outputs import write_outputs

        view = View(
            options.checked_color(color),
            self.profile,
            self.show_passed,
            self.show_all,
            fail_on=settings.fail_on,
            allow_partial=settings.allow_partial,
        )
        write_outputs(reports, [o for o in places if o.path is not None] if self.statistics else places, view)
        if self.statistics:
            from gradcheck.report.listings import statistics

            print(statistics(reports), end="")
        if self.add_ignore:
            from gradcheck.analysis.wording import counted
            from gradcheck.report.add_ignores import add_ignores

            count, left = add_ignores(reports)
            print(f"wrote {counted(count, 'comment')}", *left, sep="\n", file=sys.stderr)


@dataclass(frozen=True)
class ConfigOptions:
    """Where the settings come from."""

    config: options.Config = None
    isolated: options.Isolated = False

    def settings(self, **flags: Any) -> Settings:
        return options.settings_of(self.config, self.isolated, **flags)


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """The command as typer is to see it: in place of each group stand its options. All of them are given by keyword."""
    hints = get_type_hints(command, include_extras=True)
    groups: dict[str, type] = {}
    shown: list[inspect.Parameter] = []
    for parameter in inspect.signature(command).parameters.values():
        hint = hints[parameter.name]
        if is_dataclass(hint) and isinstance(hint, type):
            groups[parameter.name] = hint
            own = get_type_hints(hint, include_extras=True)
            shown += [parameter.replace(name=f.name, annotation=own[f.name], default=f.default) for f in fields(hint)]
        else:
            shown.append(parameter.replace(annotation=hint))

    @functools.wraps(command)
    def flat(**values: Any) -> None:
        grouped = {name: group(**{f.name: values.pop(f.name) for f in fields(group)}) for name, group in groups.items()}
        command(**values, **grouped)

    flat.__signature__ = inspect.Signature(shown)  # type: ignore[attr-defined]
    flat.__annotations__ = {parameter.name: parameter.annotation for parameter in shown}
    del flat.__wrapped__
    return flat
