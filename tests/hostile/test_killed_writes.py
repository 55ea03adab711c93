"""`fix --write`, killed at any moment: the source holds what it held, or edits that were proved, whole."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
MOMENTS = 20
KILLED = """
import os, signal, sys
from pathlib import Path
from gradcheck.repair import edits
from tests.remedies.editing.test_write import AFTER, TEXT, planned

seen = set()
for moment in range(int(sys.argv[1])):
    for name in ("model.py", "proved"):
        Path(name).unlink(missing_ok=True)
    source = planned()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, arguments):
            global count
            if event == "open" or event.startswith(("os.", "shutil.", "tempfile.")):
                count += 1
                if count > moment and event != "os.kill":
                    os.kill(os.getpid(), signal.SIGKILL)

        def scanned(source, words):
            os.close(os.open("proved", os.O_CREAT | os.O_WRONLY))
            return []

        edits._scanned = scanned
        sys.addaudithook(hook)
        edits.scan_and_write(source, [], [], True)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    text = Path("model.py").read_text()
    assert text in (TEXT, AFTER), text
    assert text == TEXT or Path("proved").exists(), moment
    seen.add((os.waitstatus_to_exitcode(status), text == AFTER))
print(sorted(seen))
"""


def test_a_source_is_never_half_written_nor_unproved(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    words = [sys.executable, "-c", KILLED, str(MOMENTS)]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[(-9, False), (-9, True), (0, True)]", done.stdout  # before, in, and after the replacing
