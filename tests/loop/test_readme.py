"""What the README and the quickstart tell people to type, typed: every `sh` block, as it stands, in an empty folder.

`make` lines stand for their small form: the tests have the installation already, and the small form of `make demo` is
typed in test_demo.py.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/quickstart.md")
SMALL_FORM = {
    "make demo": "true",
    "make test": "true",
    "make check": "true",
    "make bench": "true",
}


def blocks(page: str) -> str:
    """The `sh` blocks of a page as one script, `make` lines in their small form."""
    found = re.findall(r"^```sh\n(.*?)^```", (ROOT / page).read_text(), flags=re.DOTALL | re.MULTILINE)
    lines = [line for block in found for line in block.splitlines()]
    return "\n".join(SMALL_FORM.get(re.sub(r"\s*#.*", "", line).strip(), line) for line in lines)


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("page", PAGES)
def test_the_commands_run_as_they_stand(page: str, tmp_path: Path) -> None:
    working = tmp_path / "working"
    working.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("FRESHRANK_")}
    environment |= {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "FRESHRANK_TEXT_ENCODER": "hashing",
    }
    told = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", blocks(page)],
        cwd=working, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert told.returncode == 0, told.stdout[-2000:] + told.stderr[-2000:]


def test_only_make_lines_that_have_a_small_form_stand_in_the_pages() -> None:
    for page in PAGES:
        left = [line for line in blocks(page).splitlines() if line.startswith("make ")]
        assert not left, f"{page}: {left}"
