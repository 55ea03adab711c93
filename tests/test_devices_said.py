"""Every tensor that gradcheck makes says where: `torch.set_default_device` is the user's, and a CPU generator draws on the CPU only."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "gradcheck"
# Those that `torch.set_default_device` changes, and that gradcheck might call.
FACTORIES = frozenset(
    """arange as_tensor asarray empty empty_strided eye full linspace logspace normal ones rand randint randn randperm scalar_tensor tensor
    tril_indices triu_indices zeros""".split()
)


def unsaid(source: str) -> Iterator[int]:
    """Lines of calls that leave the device to the default."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or not isinstance(node.func.value, ast.Name):
            continue
        if node.func.value.id == "torch" and node.func.attr in FACTORIES and not any(k.arg in ("device", None) for k in node.keywords):
            yield node.lineno


def test_a_call_without_a_device_is_found() -> None:
    assert list(unsaid("import torch\ntorch.randn(3, generator=g)\ntorch.zeros(3, device=d)\ntorch.cat([x])")) == [2]


def test_every_new_tensor_says_its_device() -> None:
    found = [f"{path.relative_to(PACKAGE)}:{line}" for path in sorted(PACKAGE.rglob("*.py")) for line in unsaid(path.read_text("utf-8"))]
    assert not found, "say device=... in " + ", ".join(found)
