"""Small files that writers change: a Sequential, and a class with a forward of its own."""

from __future__ import annotations

from typing import Any

from tests.remedies.editing.sheets import HEAD, Sheet

STACK = """def build_model():
    return nn.Sequential(
        nn.Linear(8, 64),
        nn.Sigmoid(),
        nn.Linear(64, 4),  # the head
    )


def make_optimizer(model):
    return torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.1)
"""
NET = """class Net(nn.Module):
    def __init__(self, width=64):
        super().__init__()
        self.first, self.second = nn.Linear(8, width), nn.Linear(width, 4)

    def forward(self, x):
        return self.second(torch.sigmoid(self.first(x)))


model = Net()
"""


def stack(**optimizer: Any) -> Sheet:
    sheet = Sheet(HEAD + STACK)
    sheet.layer("0", "nn.Linear(8, 64)", activation="sigmoid").layer("1", "nn.Sigmoid()", kind="activation", function="sigmoid")
    sheet.layer("2", "nn.Linear(64, 4)", head=True).root(
        sheet.text[sheet.text.index("nn.Sequential") : sheet.text.index("\n\n\ndef make")], "Sequential"
    )
    return sheet.optimizer("torch.optim.Adam(model.parameters(), lr=1e-2, eps=0.1)", **optimizer)


def net() -> Sheet:
    sheet = Sheet(HEAD + NET)
    sheet.layer("first", "nn.Linear(8, width)").layer("second", "nn.Linear(width, 4)", head=True)
    return sheet.layer(":sigmoid", "torch.sigmoid(self.first(x))", kind="activation", function="sigmoid").root("Net()")


def changed(sheet: Sheet, text: str) -> list[str]:
    """Lines that the text has in place of others, or more than the sheet."""
    before = sheet.text.splitlines()
    return [line for line in text.splitlines() if line not in before]
