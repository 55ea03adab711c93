"""The JSON Schema of `[tool.gradcheck]`, made from the readers of its keys and from the rules: what editors complete and check."""

from collections.abc import Mapping, Sequence
from typing import Any

from gradcheck.analysis.statistics import CATEGORIES, STATS
from gradcheck.config import keys
from gradcheck.types.finding import SEVERITIES
from gradcheck.types.rule import Rule

Schema = dict[str, Any]

ID = "https://json.schemastore.org/partial-gradcheck.json"
SEVERITY: Schema = {"enum": list(SEVERITIES)}
TEXT: Schema = {"type": "string"}
TEXTS: Schema = {"type": "array", "items": TEXT}
POSITIVE: Schema = {"type": "integer", "minimum": 1}
NUMBER: Schema = {"type": "number"}
SIDES: Schema = {
    "type": "object",
    "properties": {"min": NUMBER, "max": NUMBER, "aggregate": {"enum": list(keys.AGGREGATES)}},
    "anyOf": [{"required": ["min"]}, {"required": ["max"]}],
    "additionalProperties": False,
}
# Reader -> what it takes. Those of tables are made below.
SHAPES: Mapping[keys.Reader, Schema] = {
    keys._text: TEXT,
    keys._texts: TEXTS,
    keys._text_or_texts: {"anyOf": [TEXT, TEXTS]},
    keys._boolean: {"type": "boolean"},
    keys._positive: POSITIVE,
    keys._count: {"type": "integer", "minimum": 0},
    keys._above_zero: {"type": "number", "exclusiveMinimum": 0},
    keys._fail_on: {"enum": list(keys.FAIL_ON)},
    keys._paths: TEXTS,
    keys._baseline: TEXT,
    keys._reference: TEXT,
    keys._arguments: {"type": "object"},
    keys._ignore_table: {"type": "object", "additionalProperties": TEXTS},
}
ABOUT = {
    "select": "Rules to run: names, codes, families such as GRAD, or ALL.",
    "ignore": "Rules to leave out: names, codes or families.",
    "extend-select": "Rules to run besides the selected ones.",
    "fail-on": "The least severity that makes the exit code 1.",
    "max-warnings": "The exit code is 1 when there are more warnings than this.",
    "allow-partial": "A run that was judged only in part does not fail.",
    "steps": "Optimizer steps of the probe training (default 100).",
    "seeds": "How many seeds; a finding is what most of them show (default 1).",
    "budget": "Seconds for the whole scan.",
    "fast": "The first steps only, without training experiments.",
    "offload": "Keep no copy of the model in memory: set aside on the host, or in a file, what is not being trained.",
    "device": "auto, cpu, cuda, cuda:1 or mps (default auto).",
    "dtype": "float32, bf16, fp16 or float64.",
    "rule-paths": "Files or folders with rules of your own, relative to this file.",
    "baseline": "The file of the findings that are known.",
    "baseline-tolerance": "The part by which the value of a known finding may get worse (default 0.5).",
    "assert": "Limits on numbers of the run, such as stat:loss.final or score:gradients.",
    "rules": "Severity and limits of single rules.",
    "per-layer-ignores": "Pattern of layer names -> rules to ignore there.",
    "targets": "What `gradcheck scan` scans when it is given no target.",
    "model": "A model: FILE.py, FILE.py:name or package.module:name.",
    "target": "The same as `model`; a training script or a notebook, too.",
    "args": "Arguments for the model's class or factory.",
    "data": "Data: a file, or FILE.py:name.",
    "val-data": "Validation data.",
    "input": "A synthetic input, such as float32[32,3,224,224]; several for several arguments.",
    "loss": "cross_entropy, mse_loss, ..., or FILE.py:name.",
    "optimizer": "sgd, adam, adamw, ..., or FILE.py:name.",
    "lr": "Learning rate.",
}


def schema(rules: Sequence[Rule]) -> Schema:
    """Of the table in pyproject.toml, and of a whole gradcheck.toml."""
    shapes: dict[keys.Reader, Schema] = dict(SHAPES) | {
        keys._rule_table: _rules(rules),
        keys._assertions: _assertions(),
        keys._target_table: {"type": "object", "additionalProperties": _target()},
    }
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$id": ID,
        "title": "gradcheck",
        "description": "Configuration of gradcheck: [tool.gradcheck] in pyproject.toml, or gradcheck.toml",
        "definitions": {"limit": {"anyOf": [SIDES, {"type": "array", "items": [SEVERITY, SIDES], "minItems": 2, "maxItems": 2}]}},
        "type": "object",
        "properties": _properties(keys.READERS, shapes),
        "additionalProperties": False,
    }


def _properties(readers: Mapping[str, keys.Reader], shapes: Mapping[keys.Reader, Schema]) -> Schema:
    return {name: {"description": ABOUT[name]} | shapes[reader] for name, reader in readers.items()}


def _target() -> Schema:
    """Named by `model` or by `target`, not by both."""
    return {
        "type": "object",
        "properties": _properties(keys.TARGET_READERS, SHAPES),
        "oneOf": [{"required": ["model"]}, {"required": ["target"]}],
        "additionalProperties": False,
    }


def _rules(rules: Sequence[Rule]) -> Schema:
    """The limits of gradcheck's own rules by name; others, and codes, take any limit."""
    own = {"type": "object", "properties": {"severity": SEVERITY}}
    return {
        "type": "object",
        "properties": {rule.name: own | {"description": rule.summary, **_limits(rule)} for rule in rules},
        "additionalProperties": own | {"additionalProperties": NUMBER},
    }


def _limits(rule: Rule) -> Schema:
    limits = {name.replace("_", "-"): NUMBER | {"description": x.unit, "default": x.value} for name, x in rule.limits.items()}
    return {"properties": {"severity": SEVERITY} | limits, "additionalProperties": False}


def _assertions() -> Schema:
    limit = {"$ref": "#/definitions/limit"}
    names = [*(f"stat:{name}" for name in STATS), *(f"score:{name}" for name in CATEGORIES)]
    return {
        "type": "object",
        "properties": dict.fromkeys(names, limit),
        "patternProperties": {"^score:": limit},
        "additionalProperties": False,
    }
