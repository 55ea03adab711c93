"""Notebooks: a real one is run by a real kernel, and what it shows is looked at in a browser."""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")

ROOT = Path(__file__).resolve().parents[2]
CELLS = (
    "import torch\nfrom torch import nn\nimport gradcheck\n%load_ext gradcheck\ntorch.manual_seed(0)\n"
    "x = torch.randn(256, 8); y = (x[:, 0] > 0).long()\nlosses, history = [], {'steps': 0}",
    "class Net(nn.Module):\n    def __init__(self):\n        super().__init__()\n        self.a = nn.Linear(8, 16)\n"
    "        self.b = nn.Linear(16, 2)\n    def forward(self, x):\n        return torch.softmax(self.b(torch.relu(self.a(x))), 1)\n"
    "model = Net()\nopt = torch.optim.SGD(model.parameters(), lr=0.1)\nbefore = model.a.weight.detach().clone(); "
    "state = torch.get_rng_state()",
    "%%gradcheck --budget 10\nrate = 0.1\nfor i in range(60):\n    opt.zero_grad()\n"
    "    loss = nn.functional.cross_entropy(model(x), y)\n    loss.backward(); opt.step(); losses.append(loss.item())",
    "same = torch.equal(before, model.a.weight) and torch.equal(state, torch.get_rng_state())\n"
    "print(same, losses, 'rate' in globals(), 'loss' in globals(), model.a.weight.grad, opt.state_dict()['state'])",
    "%%gradcheck watch model opt\nfor i in range(40):\n    opt.zero_grad()\n"
    "    nn.functional.cross_entropy(model(x), y).backward(); opt.step()\nprint('trained', i)",
    "%%gradcheck --steps 3\npass",
    "result = gradcheck.scan(Net(), [(x, y)], loss=nn.functional.cross_entropy, config={'fast': True})\nresult",
    "%%gradcheck --budget soon\npass",
    "%%gradcheck --select 'GRAD\npass",
)


@pytest.fixture(scope="module")
def cells(tmp_path_factory):
    """The executed cells of a notebook."""
    folder = tmp_path_factory.mktemp("notebook")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(text) for text in CELLS])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [before])])
    try:
        client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
        client.execute()
    finally:
        os.environ.pop("PYTHONPATH") if before is None else os.environ.update(PYTHONPATH=before)
    return notebook.cells


def printed(cell, stream="stdout"):
    return "".join(o["text"] for o in cell.outputs if o["output_type"] == "stream" and o["name"] == stream)


def pictures(cell):
    return [o["data"]["text/html"] for o in cell.outputs if "text/html" in o.get("data", {})]


def test_a_cell_is_scanned_and_its_finding_stands_at_the_cell_that_made_it(cells):
    (page,) = [p for p in pictures(cells[2]) if "gradcheck-view" in p]
    assert "output-loss-mismatch" in page and "cell 2:7:16" in page and "cell 3:5:" in page and "torch.softmax(self.b(" in page
    assert "ipykernel" not in page and "<script>" not in page


def test_the_notebook_is_as_it_was_after_a_scan(cells):
    assert printed(cells[3]) == "True [] False False None {}\n"


def test_a_live_board_is_renewed_in_its_cell_and_the_training_counts(cells):
    boards = [p for p in pictures(cells[4]) if "gradcheck-view" in p]
    assert "trained 39" in printed(cells[4])
    assert len(boards) == 2 and "steps/s" in boards[0] and "output-loss-mismatch" in boards[1]  # the live one, and the run


def test_what_the_magic_does_not_know_is_said(cells):
    assert "does not know '--steps'" in printed(cells[5], "stderr")
    assert "--budget takes seconds, not 'soon'" in printed(cells[7], "stderr")
    assert "No closing quotation" in printed(cells[8], "stderr")


def test_reports_show_themselves(cells):
    (page,) = pictures(cells[6])
    assert "gradcheck-view" in page and "output-loss-mismatch" in page


def test_ids_are_unique_among_all_outputs(cells):
    found = [i for cell in cells for page in pictures(cell) for i in re.findall(r'\sid="([^"]+)"', page)]
    assert found and len(found) == len(set(found))


def test_it_is_seen_in_a_browser_light_and_dark_and_changes_nothing_around_it(cells, tmp_path):
    sync = pytest.importorskip("playwright.sync_api")
    program = next((p for p in ("/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome") if Path(p).exists()), None)
    if program is None:
        pytest.skip("no Chromium")
    outputs = "".join(f"<div class=output>{page}</div>" for cell in cells for page in pictures(cell))
    file = tmp_path / "notebook.html"
    mine = "<h2 id=mine>Mine</h2><table><td id=cell>1</table>"
    file.write_text(f"<!doctype html><meta charset=utf-8><body data-jp-theme-light=true>{mine}{outputs}")
    probe = "(q) => { const s = getComputedStyle(document.querySelector(q)); return [s.color, s.fontSize, s.padding, s.marginTop] }"
    with sync.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=program, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1200, "height": 900})
        page.set_content(f"<!doctype html>{mine}")
        alone = [page.evaluate(probe, "#mine"), page.evaluate(probe, "#cell")]
        page.goto(file.as_uri())
        assert [page.evaluate(probe, "#mine"), page.evaluate(probe, "#cell")] == alone
        colour = "() => getComputedStyle(document.querySelector('.gradcheck-view')).backgroundColor"
        assert page.evaluate(colour) == "rgb(255, 255, 255)"
        heading = "() => getComputedStyle(document.querySelector('.gradcheck-view h2')).fontSize"
        assert page.evaluate(heading) == "27px"
        assert page.evaluate("() => document.documentElement.scrollWidth <= innerWidth")
        page.screenshot(path=str(tmp_path / "light.png"), full_page=True)
        page.evaluate("() => { document.body.dataset.jpThemeLight = 'false' }")
        assert page.evaluate(colour) == "rgb(15, 20, 25)"
        page.screenshot(path=str(tmp_path / "dark.png"), full_page=True)
        browser.close()
