"""What plugs into CI: the action, the hook, and the snippets of docs/ci.md, against schemas and by running them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).resolve().parents[1]
ACTION = ROOT / ".github" / "actions" / "scan" / "action.yml"
HOOKS = ROOT / ".pre-commit-hooks.yaml"
GUIDE = ROOT / "docs" / "ci.md"


def read(path):
    return YAML(typ="safe").load(path.read_text())


def check(schema, path):
    """Complaints of check-jsonschema, with a schema that it carries."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", f"vendor.{schema}", str(path)]
    done = subprocess.run(command, capture_output=True, text=True)
    return "" if done.returncode == 0 else done.stdout + done.stderr


def snippets():
    """(name, YAML) of the guide's blocks; a block's first line names the file that it is for."""
    return re.findall(r"```yaml\n# (\S+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)


def test_the_action_is_valid(tmp_path):
    assert check("github-actions", ACTION) == ""
    (tmp_path / "action.yml").write_text(ACTION.read_text().replace("using: composite", "using: compost"))
    assert check("github-actions", tmp_path / "action.yml")


@pytest.mark.parametrize(("name", "text"), snippets(), ids=lambda value: value if len(value) < 60 else "")
def test_the_snippets_of_the_guide_are_valid(name, text, tmp_path):
    path = tmp_path / Path(name).name
    path.write_text(text)
    schema = {"gitlab-ci": "gitlab-ci", "workflows": "github-workflows"}
    kind = next((schema[word] for word in schema if word in name), None)
    assert check(kind, path) == "" if kind else read(path)["repos"][0]["hooks"][0]["id"] == read(HOOKS)[0]["id"]


def test_the_guide_has_a_workflow_a_pipeline_and_a_hook():
    assert [name for name, _ in snippets()] == [".github/workflows/gradcheck.yml", ".gitlab-ci.yml", ".pre-commit-config.yaml"]


def test_the_workflow_of_the_guide_is_the_one_that_init_writes():
    from gradcheck.cli.init import workflow

    written = YAML(typ="safe").load(workflow())
    shown = YAML(typ="safe").load(next(text for name, text in snippets() if "workflows" in name))
    assert shown == written


def test_repository_and_tag_are_said_in_one_place():
    from gradcheck.version import REPOSITORY, TAG

    assert set(re.findall(r"([\w.-]+/gradcheck)(?:/\.github|@|\n    rev)", GUIDE.read_text())) == {REPOSITORY}
    assert set(re.findall(r"(?:scan@|gradcheck@|rev: )([\w.]+)", GUIDE.read_text())) == {TAG}


def test_the_release_is_a_valid_workflow_and_only_its_last_job_may_publish(tmp_path):
    release = ROOT / ".github" / "workflows" / "release.yml"
    assert check("github-workflows", release) == ""
    jobs = read(release)["jobs"]
    assert read(release)["permissions"] == {"contents": "read"} and "permissions" not in jobs["build"]
    assert jobs["publish"]["permissions"] == {"id-token": "write"} and jobs["publish"]["if"] == "github.ref_type == 'tag'"
    assert "secrets." not in release.read_text()
    script = (ROOT / ".ci" / "release").read_text()
    assert os.access(ROOT / ".ci" / "release", os.X_OK) and "twine" in script and "check-wheel-contents" in script


def test_the_workflow_uses_inputs_that_the_action_has():
    steps = YAML(typ="safe").load(next(text for name, text in snippets() if "workflows" in name))["jobs"]["scan"]["steps"]
    (ours,) = (step for step in steps if "/.github/actions/scan@" in step.get("uses", ""))
    assert (ROOT / ".github" / "actions" / "scan").is_dir() and set(ours["with"]) <= set(read(ACTION)["inputs"])


def test_inputs_reach_the_script_as_variables_only():
    for step in read(ACTION)["runs"]["steps"]:
        assert "${{" not in step["run"]


@pytest.fixture
def script(tmp_path):
    """Runs the action's script with a python that notes its arguments: (exit code, arguments, outputs)."""
    (text,) = (step["run"] for step in read(ACTION)["runs"]["steps"] if step.get("id") == "scan")
    fake = tmp_path / "bin" / "python"
    fake.parent.mkdir()
    fake.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@" > "{tmp_path}/arguments"\nexit "${{FAKE_CODE:-0}}"\n')
    fake.chmod(0o755)

    def run(code=0, **inputs):
        env = {"PATH": f"{fake.parent}:{os.environ['PATH']}", "GITHUB_OUTPUT": str(tmp_path / "outputs"), "FAKE_CODE": str(code)}
        env |= {"TARGETS": "", "ARGUMENTS": "", "SARIF": "", "RUN": ""} | inputs
        done = subprocess.run(["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", text], cwd=tmp_path, env=env, timeout=30)
        return done.returncode, (tmp_path / "arguments").read_text().splitlines(), (tmp_path / "outputs").read_text()

    return run


@pytest.mark.parametrize("code", [0, 1, 2])
def test_the_script_keeps_the_exit_code(script, code):
    assert script(code)[0] == code and script(code)[2].endswith(f"exit-code={code}\n")


def test_the_script_passes_inputs_on(script, tmp_path):
    assert script()[1] == ["-m", "gradcheck", "scan", "--quiet", "--output", "github"]
    words = script(TARGETS="a.py b.py:Net", ARGUMENTS="--fail-on warning", SARIF="g.sarif", RUN="run.json")[1]
    assert words[6:] == ["--output", "sarif:g.sarif", "--output", "json:run.json", "--fail-on", "warning", "a.py", "b.py:Net"]
    assert script(TARGETS="$(touch pwned) `touch pwned`; touch pwned")[0] == 0 and not (tmp_path / "pwned").exists()


HOOK = {
    "type": "array",
    "minItems": 1,
    "items": {
        "type": "object",
        "required": ["id", "name", "entry", "language"],
        "additionalProperties": False,
        "properties": {
            "id": {"type": "string", "pattern": "^[a-z-]+$"},
            "name": {"type": "string"},
            "description": {"type": "string"},
            "entry": {"type": "string", "pattern": "^gradcheck "},
            "language": {"const": "system"},
            "types": {"type": "array", "items": {"enum": ["python"]}},
            "pass_filenames": {"const": False},
            "require_serial": {"const": True},
            "stages": {"type": "array", "items": {"enum": ["pre-commit", "pre-push", "manual"]}},
        },
    },
}


def test_the_hook_is_one_of_pre_commit():
    jsonschema.validate(read(HOOKS), HOOK)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate([{"id": "gradcheck"}], HOOK)
