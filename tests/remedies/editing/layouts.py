"""Source files in many layouts: the same small model, written as people write it."""

from __future__ import annotations

import random
from dataclasses import dataclass

LINEAR, SIGMOID = "nn.Linear(8, 8)", "nn.Sigmoid()"

INIT = "class {name}(nn.Module):\n{{i}}def __init__(self):\n{{i}}{{i}}super().__init__()\n"
NET, BASE = INIT.format(name="Net"), INIT.format(name="Base")
FORWARD = "\n{i}def forward(self, x):\n{i}{i}return self.b(self.a(x))\n\n\nmodel = Net()\n"

# What makes `model`; {i} is one level of indentation. Each holds LINEAR and SIGMOID once.
MODELS = {
    "one line": "model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())\n",
    "behind a semicolon": 'name = "größe"; model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid()); count = 1\n',
    "if on one line": "if True: model = nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())\n",
    "several lines": "model = nn.Sequential(\n{i}nn.Linear(8, 8),  # größe, weights\n{i}nn.Sigmoid(),  # squashed\n)\n",
    "no last comma": "model = nn.Sequential(\n{i}nn.Linear(8, 8),\n{i}nn.Sigmoid()\n)\n",
    "odd spacing": "model = nn.Sequential( nn.Linear(8, 8) ,nn.Sigmoid() )\n",
    "comprehension": "model = nn.Sequential(*[layer for _ in range(3) for layer in (nn.Linear(8, 8), nn.Sigmoid())])\n",
    "loop": "layers = []\nfor _ in range(3):\n{i}layers += [nn.Linear(8, 8), nn.Sigmoid()]\nmodel = nn.Sequential(*layers)\n",
    "append": "layers = []\nfor _ in range(3):\n{i}layers.append(nn.Linear(8, 8))\n{i}layers.append(nn.Sigmoid())\n"
    "model = nn.Sequential(*layers)\n",
    "helper": "def block():\n{i}linear = nn.Linear(8, 8)\n{i}return nn.Sequential(linear, nn.Sigmoid())\n\n\n"
    "model = nn.Sequential(block(), block())\n",
    "factory": 'def build():\n{i}"""Größe."""\n{i}return nn.Sequential(nn.Linear(8, 8), nn.Sigmoid())\n\n\nmodel = build()\n',
    "class": NET + "{i}{i}self.a = nn.Linear(8, 8)\n{i}{i}self.b = nn.Sigmoid()\n" + FORWARD,
    "tuple": NET + "{i}{i}self.a, self.b = nn.Linear(8, 8), nn.Sigmoid()\n\n{i}@torch.autocast('cpu', enabled=False)\n"
    "{i}def forward(self, x): return self.b(self.a(x))\n\n\nmodel = Net()\n",
    "subclass": BASE + "{i}{i}self.a = nn.Linear(8, 8); self.b = nn.Sigmoid()\n\n\nclass Net(Base):" + FORWARD,
}
HEADS = {
    "usual": "import torch\nfrom torch import nn\n",
    "docstring and future": '"""Über a model."""\n\nfrom __future__ import annotations\n\nimport torch\nimport torch.nn as nn\n',
    "only nn": "from torch import nn\nimport torch\n",
}
LOOPS = {
    "for": "for x in data:\n{i}optimizer.zero_grad()\n{i}model(x).sum().backward()\n{i}optimizer.step()\n",
    "one line": "for x in data: optimizer.zero_grad(); model(x).sum().backward(); optimizer.step()\n",
    "in a with": "with torch.enable_grad():\n{i}for x in data:\n{i}{i}model(x).sum().backward()  # größe\n"
    "{i}{i}optimizer.step()  # moves\n",
    "in a function": "def train():\n{i}for x in data:\n{i}{i}if x is not None: model(x).sum().backward(); optimizer.step()\n"
    "{i}{i}else: pass\n\n\ntrain()\n",
}


@dataclass(frozen=True)
class Layout:
    """A file: its text, and how it is stored."""

    text: str
    encoding: str
    bom: bool

    @property
    def data(self) -> bytes:
        return self.stored(self.text)

    def stored(self, text: str) -> bytes:
        return (b"\xef\xbb\xbf" if self.bom else b"") + text.encode(self.encoding)


def layouts(seed: int, body: str) -> Layout:
    """The body in a random layout: head, newlines, indentation, encoding, what stands before and behind."""
    draw = random.Random(seed)
    head = draw.choice(list(HEADS.values()))
    encoding, bom = draw.choice([("utf-8", False), ("utf-8", True), ("latin-1", False)])
    cookie = "# -*- coding: latin-1 -*-\n" if encoding == "latin-1" else draw.choice(["", "#!/usr/bin/env python\n"])
    tail = draw.choice(["", "# Ende: größer\n", "\n\n", "done = True"])
    text = cookie + head + draw.choice(["\n", "\n\n", "size = 'größe'\n\n"]) + body + tail
    text = text.replace("{i}", draw.choice(["    ", "  ", "\t"]))
    return Layout(text.replace("\n", draw.choice(["\n", "\n", "\r\n"])), encoding, bom)
