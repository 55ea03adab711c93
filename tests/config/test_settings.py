"""Settings from files, --config lines and flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.config.settings import RuleSettings, Settings, load, settings_from
from gradcheck.errors import ConfigError

FULL = """
[project]
name = "x"

[tool.gradcheck]
select = ["GRAD", "dead-units"]
extend-select = ["ACT"]
ignore = ["DATA"]
fail-on = "warning"
seeds = 3
budget = 60
rule-paths = ["tools/rules.py"]

[tool.gradcheck.rules.vanishing-gradient]
severity = "warning"
warning-slope = 0.2

[tool.gradcheck.per-layer-ignores]
"encoder.embed*" = ["learning-rate-too-low"]

[tool.gradcheck.targets.encoder]
model = "src/model.py:Encoder"
input = "float32[32,64]"
lr = 0.1
args = { depth = 3, name = "big" }
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder that is the working directory, with a model file."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "model.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(project, text, name="pyproject.toml"):
    (project / name).write_text(text, encoding="utf-8")


def test_without_a_file_there_are_defaults(project):
    assert load() == Settings()
    assert Settings().select == ("ALL",) and Settings().fail_on == "error"


def test_every_key_is_read(project):
    write(project, FULL)
    settings = load()
    assert settings.select == ("GRAD", "dead-units") and settings.ignore == ("DATA",) and settings.extend_select == ("ACT",)
    assert (settings.fail_on, settings.seeds, settings.budget) == ("warning", 3, 60.0)
    assert settings.rule_paths == (project / "tools/rules.py",)
    assert settings.rule("vanishing-gradient", "GRAD001") == RuleSettings("warning", {"warning_slope": 0.2})
    assert settings.per_layer_ignores == {"encoder.embed*": ("learning-rate-too-low",)}
    target = settings.targets["encoder"]
    assert (target.target, target.input, target.lr) == (str(Path("src/model.py")) + ":Encoder", ("float32[32,64]",), 0.1)
    assert target.args == {"depth": "3", "name": "big"}


def test_the_nearest_file_upward_counts_and_paths_are_relative_to_it(project, monkeypatch):
    write(project, FULL)
    deeper = project / "src" / "deep"
    deeper.mkdir()
    (deeper / "pyproject.toml").write_text("[tool.other]\nx = 1\n")  # says nothing about gradcheck: not ours
    monkeypatch.chdir(deeper)
    settings = load()
    assert settings.targets["encoder"].target == str(Path("../model.py")) + ":Encoder"


def test_gradcheck_toml_wins_over_pyproject(project):
    write(project, FULL)
    write(project, 'fail-on = "info"\n[rules.dead-units]\nseverity = "info"\n', "gradcheck.toml")
    settings = load()
    assert settings.fail_on == "info" and settings.seeds == 1 and "dead-units" in settings.rules


def test_isolated_reads_no_file(project):
    write(project, FULL)
    assert load(isolated=True) == Settings()


def test_a_config_file_replaces_the_found_one(project):
    write(project, FULL)
    write(project, "seeds = 5", "other.toml")
    assert load(config=["other.toml"]).seeds == 5
    assert load(config=["other.toml"]).fail_on == "error"


def test_config_lines_go_over_the_file(project):
    write(project, FULL)
    settings = load(config=["seeds = 7", "rules.vanishing-gradient.severity = 'info'"])
    assert settings.seeds == 7 and settings.fail_on == "warning"
    assert settings.rule("vanishing-gradient", "GRAD001") == RuleSettings("info", {"warning_slope": 0.2}), "other limits stay"


def test_flags_go_over_everything(project):
    write(project, FULL)
    settings = load().with_flags(select=["LOSS"], ignore=["NUM"], seeds=2, device=None, profile=True)
    assert settings.select == ("LOSS",) and settings.ignore == ("DATA", "NUM") and settings.extend_select == ("ACT",)
    assert settings.seeds == 2 and settings.device == "auto" and settings.profile


def test_what_a_flag_selects_is_no_longer_ignored(project):
    write(project, FULL)
    assert load().with_flags(select=["DATA"]).ignore == ()


@pytest.mark.parametrize(
    ("text", "message", "hint", "line"),
    [
        ("[tool.gradcheck]\nseeds = 1\nselct = []", "unknown key 'selct' in [tool.gradcheck]", 'did you mean "select"?', 3),
        ("[tool.gradcheck]\nseeds = 'two'", "seeds must be a whole number of at least 1; got 'two'", "", 2),
        ("[tool.gradcheck]\nseeds = 0", "seeds must be", "", 2),
        ("[tool.gradcheck]\nseeds = true", "seeds must be", "", 2),
        ("[tool.gradcheck]\nselect = 'GRAD'", "select must be a list of strings", "", 2),
        ("[tool.gradcheck]\nfail-on = 'fatal'", "fail-on must be error, warning, info or never; got 'fatal'", "", 2),
        ("[tool.gradcheck]\nbudget = -1", "budget must be above 0", "", 2),
        ("[tool.gradcheck.rules.dead-units]\nseverity = 'off'", "severity must be error, warning or info", "`ignore`", 2),
        ("[tool.gradcheck.rules.dead-units]\nshare = 'x'", "rules.dead-units.share must be a number", "", 2),
        ("[tool.gradcheck.rules]\ndead-units = 1", "rules.dead-units must be a table", "", 2),
        ("[tool.gradcheck.targets.a]\nlr = 0.1", "[tool.gradcheck.targets.a] has no `model`", "model =", 1),
        ("[tool.gradcheck.targets.a]\nmodel = 'm'\ntarget = 'm'", "both `model` and `target`", "", 1),
        ("[tool.gradcheck.targets.a]\nmodel = 'm'\noptimiser = 'x'", "key 'optimiser' in [tool.gradcheck.targets.a]", "optimizer", 3),
        ("[tool.gradcheck.per-layer-ignores]\n'a.b*' = 3", "per-layer-ignores.a.b* must be a list of strings", "", 2),
    ],
)
def test_a_wrong_setting_is_an_error_with_its_place_and_a_next_step(project, text, message, hint, line):
    write(project, text)
    with pytest.raises(ConfigError) as e:
        load()
    assert message in e.value.message and hint in e.value.hint
    assert e.value.location is not None and (e.value.location.path, e.value.location.line) == ("pyproject.toml", line)


def test_a_file_that_is_not_toml_is_an_error_with_its_line(project):
    write(project, "[tool.gradcheck]\nseeds = = 3\n")
    with pytest.raises(ConfigError) as e:
        load()
    assert "not valid TOML" in e.value.message and e.value.location is not None and e.value.location.line == 2


def test_a_missing_config_file_and_a_line_that_is_neither_are_errors(project):
    with pytest.raises(ConfigError, match="cannot read"):
        load(config=["missing.toml"])
    with pytest.raises(ConfigError, match="neither a file nor valid TOML"):
        load(config=["fail-on = warning"])


def test_a_wrong_flag_is_an_error_about_the_flag():
    with pytest.raises(ConfigError) as e:
        Settings().with_flags(fail_on="fatal")
    assert "fail-on must be" in e.value.message and e.value.location is None


def test_python_callers_pass_a_mapping_a_file_settings_or_nothing(project):
    write(project, FULL)
    assert settings_from(None) == Settings()
    assert settings_from({"fail-on": "info"}).fail_on == settings_from({"fail_on": "info"}).fail_on == "info"
    assert settings_from(project / "pyproject.toml").seeds == 3
    assert settings_from(Settings(seeds=4)).seeds == 4
    with pytest.raises(ConfigError, match="unknown key 'failon' in config"):
        settings_from({"failon": "info"})
