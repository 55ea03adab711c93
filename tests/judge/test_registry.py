"""Rules from files, folders and installed packs."""

from __future__ import annotations

import sys
from importlib.metadata import EntryPoint

import pytest

from gradcheck.errors import ConfigError
from gradcheck.judge import registry
from gradcheck.judge.registry import _check_unique, find_rule, load_rules
from tests.judge.rules import rule_that

PACK = """
from __future__ import annotations
from dataclasses import dataclass
from gradcheck.types.rule import rule

@dataclass(frozen=True)
class Helper:
    x: int = 0

@rule("{code}", "{name}", up_to="warning")
def check(m, limits):
    "A project's own rule."
    return []

RULES = (check,)
"""


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """No built-in rules and no installed packs but those of a test."""
    monkeypatch.setattr(registry, "builtin_rules", lambda: (rule_that([], "GRAD001", "vanishing-gradient"),))
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: [])
    registry._installed_rules.cache_clear()
    yield
    registry._installed_rules.cache_clear()


def pack(path, code="ACME001", name="acme-rule"):
    path.write_text(PACK.format(code=code, name=name))
    return path


def test_a_file_brings_its_rules_and_is_their_origin(tmp_path):
    file = pack(tmp_path / "own.py")
    own = find_rule("acme001", load_rules([file]))
    assert own is not None and own.origin == str(file) and own.summary == "A project's own rule"
    assert [p.name for p in tmp_path.iterdir()] == ["own.py"], "no bytecode is left beside it"


def test_a_folder_brings_the_rules_of_its_files(tmp_path):
    pack(tmp_path / "a.py")
    pack(tmp_path / "b.py", "ACME002", "other-rule")
    (tmp_path / "helper.py").write_text("x = 1\n")
    assert [r.code for r in load_rules([tmp_path])] == ["GRAD001", "ACME001", "ACME002"]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("raise RuntimeError('boom')", "RuntimeError: boom"),
        ("def f(:\n", "SyntaxError"),
        ("x = 1", "has no RULES"),
        ("RULES = (1,)", "not a rule"),
        ("RULES = 3", "not a rule"),
        (PACK.format(code="acme1", name="acme-rule"), "rule code 'acme1'"),
        (PACK.format(code="ACME001", name="Acme_Rule"), "rule name 'Acme_Rule' is not kebab-case"),
    ],
)
def test_a_broken_file_is_an_error_that_names_it(tmp_path, text, what):
    file = tmp_path / "broken.py"
    file.write_text(text)
    with pytest.raises(ConfigError) as e:
        load_rules([file])
    assert "broken.py" in e.value.message and what in e.value.message and e.value.hint


def test_a_missing_file_and_an_empty_folder_are_errors(tmp_path):
    for path, what in ((tmp_path / "none.py", "no such rule file"), (tmp_path, "no rules in folder")):
        with pytest.raises(ConfigError, match=what):
            load_rules([path])


@pytest.mark.parametrize(("code", "name"), [("GRAD001", "other-name"), ("ACME001", "vanishing-gradient")])
def test_a_code_or_name_that_occurs_twice_is_an_error_that_names_both(tmp_path, code, name):
    file = pack(tmp_path / "own.py", code, name)
    with pytest.raises(ConfigError) as e:
        load_rules([file])
    assert "gradcheck" in e.value.message and "own.py" in e.value.message


def test_the_same_file_twice_is_an_error(tmp_path):
    file = pack(tmp_path / "own.py")
    with pytest.raises(ConfigError):
        load_rules([file, file])


def installed(monkeypatch, tmp_path, body, value="acme_pack"):
    (tmp_path / "acme_pack.py").write_text(body)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "acme_pack", raising=False)
    points = [EntryPoint("acme", value, "gradcheck.rules")]
    monkeypatch.setattr("importlib.metadata.entry_points", lambda group: points)


def test_an_installed_pack_is_loaded(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, PACK.format(code="ACME001", name="acme-rule"))
    assert [r.code for r in load_rules()] == ["GRAD001", "ACME001"]
    assert [r.code for r in load_rules(packs=False)] == ["GRAD001"]


def test_an_installed_pack_may_be_a_callable(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, PACK.format(code="ACME001", name="acme-rule") + "def rules(): return [check]\n", "acme_pack:rules")
    assert [r.code for r in load_rules()] == ["GRAD001", "ACME001"]


def test_a_broken_installed_pack_is_an_error_that_names_it(monkeypatch, tmp_path):
    installed(monkeypatch, tmp_path, "import no_such_module_at_all")
    with pytest.raises(ConfigError, match=r"entry point 'acme'.*no_such_module_at_all"):
        load_rules()


def test_uniqueness_of_the_built_in_rules_themselves():
    with pytest.raises(ConfigError):
        _check_unique([rule_that([]), rule_that([])])
