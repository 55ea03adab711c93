"""Scripts and model files are told apart by their text."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.detect import is_script
from sample_models.catalogue import README, healthy_classics, sick_samples

LOOP = "for x, y in loader:\n    loss(model(x), y).backward()\n    optimizer.step()\n"
MAIN = 'if __name__ == "__main__":\n'
TARGET = "def build_model():\n    return Net()\n\ndef make_optimizer(model):\n    return SGD(model.parameters())\n"


def indented(text: str) -> str:
    return "".join(f"    {line}\n" for line in text.splitlines())


SCRIPTS = {
    "a loop at the top": LOOP,
    "a loop at the top of a file with a model": "model = Net()\nloss_fn = CE()\n" + LOOP,
    "a loop under the guard": MAIN + indented(LOOP),
    "a function under the guard": f"def main():\n{indented(LOOP)}\n{MAIN}    main()\n",
    "functions that call each other": f"def train():\n{indented(LOOP)}\ndef main():\n    train()\n\nmain()\n",
    "a method": f"class Learner:\n    def fit(self):\n{indented(indented(LOOP))}\nLearner().fit()\n",
    "a trainer": "from transformers import Trainer\ntrainer = Trainer(model)\ntrainer.train()\n",
    "a trainer of a package": "import lightning as L\nL.Trainer(max_epochs=1).fit(model)\n",
    "a factory alone, with its loop under the guard": f"def build_model():\n    return Net()\n\n{MAIN}{indented(LOOP)}",
}
MODEL_FILES = {
    "a target with a loop under the guard": TARGET + MAIN + indented(LOOP),
    "a target with a function that nobody calls": f"{TARGET}\ndef train():\n{indented(LOOP)}",
    "classes only": "class Net(nn.Module):\n    pass\n",
    "a preprocessor that is fitted": TARGET + "X = StandardScaler().fit(X).transform(X)\n",
    "no Python": "for x in:\n",
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(SCRIPTS[name])
    assert is_script(str(path))


@pytest.mark.parametrize("name", MODEL_FILES)
def test_model_files(name, tmp_path):
    path = tmp_path / "model.py"
    path.write_text(MODEL_FILES[name])
    assert not is_script(str(path))


def test_a_loop_in_a_module_beside_it(tmp_path):
    (tmp_path / "engine.py").write_text(f"def train(model):\n{indented(LOOP)}")
    path = tmp_path / "run.py"
    path.write_text(f"from engine import train\n\n{MAIN}    train(Net())\n")
    assert is_script(str(path))


def test_the_samples_are_what_they_are():
    models = [*healthy_classics(), *(s.path for s in sick_samples()), *(s.twin for s in sick_samples())]
    assert not [p for p in models if is_script(str(p))]
    scripts = list((README.parent / "scripts").glob("*/*.py"))
    assert scripts and all(is_script(str(p)) for p in scripts)


def test_a_missing_file_is_no_script():
    assert not is_script(str(Path("nowhere.py")))
