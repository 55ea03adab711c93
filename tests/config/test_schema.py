"""The JSON Schema of the configuration takes what the parser takes, and nothing else."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import jsonschema
import pytest

from docs.config_schema import ABOUT, schema
from gradcheck.config import keys
from gradcheck.config.keys import parse
from gradcheck.config.settings import Settings
from gradcheck.config.toml_file import Source
from gradcheck.errors import ConfigError
from gradcheck.judge.registry import builtin_rules
from gradcheck.judge.select import check_rule_settings

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = schema(builtin_rules())
VALUES = ("text", "", ["a"], [1], [], 1, 0, -1, 0.5, True, {}, "error", "never", "info", {"a": 1}, {"a": ["b"]}, [["a"]], None)
WHOLE = [
    {"targets": {"a": {"model": "m.py:Net", "args": {"depth": 3}, "lr": 1e-3, "input": ["float32[2,3]"]}}},
    {"targets": {"a": {"target": "train.py", "steps": 5, "input": "float32[2]"}}},
    {"targets": {"a": {}}},
    {"targets": {"a": {"model": "m.py", "target": "m.py"}}},
    {"targets": {"a": {"model": "m.py", "epochs": 3}}},
    {"targets": {"a": "m.py"}},
    {"rules": {"vanishing-gradient": {"severity": "warning", "error-total": 3}}},
    {"rules": {"vanishing-gradient": {"severity": "off"}}},
    {"rules": {"vanishing-gradient": {"warning-slope": "0.2"}}},
    {"rules": {"GRAD001": {"slope": 1}}},
    {"rules": {"vanishing-gradient": 3}},
    {"assert": {"stat:loss.final": {"max": 1.8}}},
    {"assert": {"stat:loss.final": {"max": 1.8, "aggregate": "median"}}},
    {"assert": {"stat:loss.final": {"aggregate": "median"}}},
    {"assert": {"stat:loss.final": {"max": 1.8, "mean": 2}}},
    {"assert": {"stat:loss.final": ["warning", {"min": 0}]}},
    {"assert": {"stat:loss.final": ["off", {"min": 0}]}},
    {"assert": {"score:gradients": {"min": 90}, "score:of-a-pack": {"min": 90}}},
    {"assert": {"stat:loss.last": {"max": 1.8}}},
    {"assert": {"loss": {"max": 1.8}}},
    {"per-layer-ignores": {"encoder.*": ["dead-units"]}},
    {"per-layer-ignores": {"encoder.*": "dead-units"}},
    {"fail-on": "fatal"},
    {"colour": "always"},
    {},
]


def taken_by_the_parser(table):
    try:
        check_rule_settings(builtin_rules(), Settings(rules=parse(table, Source("test")).get("rules", {})))
    except ConfigError:
        return False
    return True


def taken_by_the_schema(table):
    return jsonschema.Draft7Validator(SCHEMA).is_valid(table)


def test_it_is_a_schema():
    jsonschema.Draft7Validator.check_schema(SCHEMA)


@pytest.mark.parametrize("table", WHOLE, ids=str)
def test_tables(table):
    assert taken_by_the_schema(table) == taken_by_the_parser(table)


@pytest.mark.parametrize("key", keys.READERS)
def test_every_key_takes_the_same_values(key):
    for value in VALUES:
        assert taken_by_the_schema({key: value}) == taken_by_the_parser({key: value}), value


@pytest.mark.parametrize("key", [key for key in keys.TARGET_READERS if key not in ("model", "target")])
def test_every_key_of_a_target_takes_the_same_values(key):
    for value in VALUES:
        table = {"targets": {"a": {"model": "m.py", key: value}}}
        assert taken_by_the_schema(table) == taken_by_the_parser(table), value


def test_every_key_is_described():
    assert ABOUT.keys() == keys.READERS.keys() | keys.TARGET_READERS.keys()


def test_the_file_in_the_documents_is_the_schema():
    spec = importlib.util.spec_from_file_location("make_rules", ROOT / "docs" / "make_rules.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "gradcheck.schema.json").read_text(encoding="utf-8") == module.schema_text(), "run: python docs/make_rules.py"
    json.loads(module.schema_text())
