"""Scripts and model files are told apart by their text."""

from __future__ import annotations

from pathlib import Path

import pytest

from gradcheck.capture.detect import is_script
from sample_models.catalogue import README, faulty_samples, healthy_classics

LOOP = "for x, y in loader:\n    loss(model(x), y).backward()\n    optimizer.step()\n"
MAIN = 'if __name__ == "__main__":\n'
CALLED = f"{MAIN}    main()\n"
NET = "class Net(nn.Module):\n    pass\n\n"
LIT = "class Lit(L.LightningModule):\n    pass\n\n"
WHOLE = "model = Net()\nloss_fn = CE()\noptimizer = SGD(model.parameters())\n"
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
    "a target without a loss, with a loop under the guard": TARGET + MAIN + indented(LOOP),
    "LightningCLI": f"{LIT}from lightning.pytorch.cli import LightningCLI\n\ndef main():\n    LightningCLI(Lit)\n\n{CALLED}",
    "a LightningCLI of one's own": f"{LIT}class Command(cli.LightningCLI):\n    pass\n\n{MAIN}    Command(Lit)\n",
    "the cli_main of a package": f"from package.cli import cli_main\n\n{MAIN}    cli_main()\n",
    "Fabric": f"{NET}fabric.launch()\nfor x in loader:\n    fabric.backward(model(x).sum())\n",
    "skorch": f"from skorch import NeuralNetClassifier\n{NET}net = NeuralNetClassifier(Net, max_epochs=3)\nnet.fit(X, y)\n",
    "a pipeline that ends in a net": (
        "from skorch import Net as Trained\nfrom sklearn.pipeline import Pipeline\n"
        f"{NET}net = Trained(Net)\npipe = Pipeline([('scale', StandardScaler()), ('net', net)])\n{MAIN}    pipe.fit(X, y)\n"
    ),
    "a search over a net made in its place": (
        "from skorch import Net as Trained\nfrom sklearn.model_selection import GridSearchCV\n"
        f"{NET}GridSearchCV(Trained(Net), {{}}).fit(X, y)\n"
    ),
    "fastai": f"from fastai.vision.all import *\n{NET}learn = Learner(dls, Net())\nlearn.fit_one_cycle(3)\n",
    "fastai, plain": f"from fastai.vision.all import *\n{NET}learn = Learner(dls, Net())\nlearn.fit(3)\n",
    "Keras": "import keras\nmodel = keras.Sequential([])\nmodel.compile(optimizer='adam')\nmodel.fit(x, y, epochs=3)\n",
    "SB3": f"from stable_baselines3 import PPO\n\ndef main():\n    model = PPO('MlpPolicy', env)\n    model.learn(1000)\n\n{CALLED}",
    "ignite": f"from ignite import engine\n{NET}trainer = engine.create_supervised_trainer(Net(), o, l)\ntrainer.run(loader)\n",
    "an engine's step": f"{NET}def update(engine, batch):\n{indented(LOOP)}\ntrainer = Engine(update)\ntrainer.run(loader)\n",
    "ultralytics": "from ultralytics import YOLO\nmodel = YOLO('yolo.yaml')\nmodel.train(data='coco8.yaml', epochs=3)\n",
    "a function of a library": f"{NET}from library import train_model\n\n{MAIN}    train_model(Net())\n",
    "a command of typer": f"{NET}app = typer.Typer()\n\n@app.command()\ndef train():\n{indented(LOOP)}\n{MAIN}    app()\n",
    "a function that is handed on": f"{NET}def worker(rank):\n{indented(LOOP)}\n{MAIN}    mp.spawn(worker, nprocs=2)\n",
    "hydra": f"{NET}@hydra.main(config_name='c')\ndef main(cfg):\n{indented(LOOP)}\n{MAIN}    main()\n",
    "no model, but something to do": "import time\nwhile True:\n    time.sleep(1)\n",
    "the main function of a package": f"import sys\nfrom package.main import main\n\n{MAIN}    sys.exit(main())\n",
}
MODEL_FILES = {
    "a whole target with a loop under the guard": WHOLE + MAIN + indented(LOOP),
    "a method that nobody calls": f"class Net(nn.Module):\n    def fit(self):\n{indented(indented(LOOP))}\nmodel = Net()\n",
    "a mode that is set": f"{NET}net = Net()\nnet.train()\nnet.eval()\n",
    "a server": "import uvicorn\nmodel = Net()\n" + MAIN + "    uvicorn.run(app)\n",
    "a process that is run": "import subprocess\nfrom torch import nn\nsubprocess.run(['ls'])\nmodel = nn.Linear(2, 2)\n",
    "a clustering": f"from sklearn.cluster import KMeans\n{NET}model = KMeans()\nmodel.fit(X)\n",
    "a pipeline without a net": f"from sklearn.pipeline import Pipeline\n{NET}pipe = Pipeline([('s', StandardScaler())])\npipe.fit(X)\n",
    "a function that is decorated": f"{NET}import torch\nmodel = Net()\ntorch.ones(1)\n@torch.compile\ndef step():\n{indented(LOOP)}",
    "functions only": "import torch\n\ndef net():\n    return torch.nn.Linear(2, 2)\n",
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


def test_a_loop_behind_other_modules_of_a_package(tmp_path):
    (tmp_path / "engine").mkdir()
    (tmp_path / "engine" / "__init__.py").write_text("from .loops import train\n")
    (tmp_path / "engine" / "loops.py").write_text(f"def train(model):\n{indented(LOOP)}")
    path = tmp_path / "run.py"
    path.write_text(f"import engine\nfrom models import Net\n\n{MAIN}    engine.train(Net())\n")
    assert is_script(str(path))


def test_the_samples_are_what_they_are():
    models = [*healthy_classics(), *(s.path for s in faulty_samples()), *(s.twin for s in faulty_samples())]
    assert not [p for p in models if is_script(str(p))]
    scripts = list((README.parent / "scripts").glob("*/*.py"))
    assert scripts and all(is_script(str(p)) for p in scripts)


def test_a_missing_file_is_no_script():
    assert not is_script(str(Path("nowhere.py")))
