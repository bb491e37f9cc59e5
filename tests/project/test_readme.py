"""Every python block of the README, and of each page of docs/, runs, in order, in one namespace per document."""

import re
import subprocess
import sys

import pytest
import torch
from support.paths import ROOT

README = ROOT / "README.md"
#: Those of docs/distributed.md run on several ranks (tests/distributed/test_docs_distributed.py).
PAGES = [README, *sorted(set((README.parent / "docs").glob("*.md")) - {README.parent / "docs/distributed.md"})]

#: What a page is about and may be absent; `make torchtitan` runs that one's.
NEEDED = {"torchtitan.md": "torchtitan", "trl.md": "trl"}


def _forget_accelerate():
    """Its state is one for the whole process, and another test, or page, may have chosen another precision."""
    if "accelerate" in sys.modules:
        state = sys.modules["accelerate"].state
        state.AcceleratorState._reset_state(reset_partial_state=True)
        state.GradientState._reset_state()


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing. is deprecated:FutureWarning")  # TRL 1.16's own default
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_blocks_run(page, tmp_path, monkeypatch, capsys):
    if not page.exists():
        pytest.skip("no README.md in this checkout")
    text = page.read_text()
    blocks = [
        (text[: m.start()].count("\n") + 2, m[1]) for m in re.finditer(r"^```python\n(.*?)^```", text, re.S | re.M)
    ]
    assert blocks, "a page without an example"
    if page.name in NEEDED:
        pytest.importorskip(NEEDED[page.name], reason=f"of {page.name}")
    monkeypatch.chdir(tmp_path)
    _forget_accelerate()
    torch.manual_seed(0)
    namespace = {"__name__": "page"}
    for line, source in blocks:
        code = compile("\n" * (line - 1) + source, str(page), "exec")  # errors show the page's line
        exec(code, namespace)


def test_the_table_of_results_is_what_the_files_say():
    script = README.parent / "benchmarks" / "readme_table.py"
    subprocess.run([sys.executable, str(script), "--check"], check=True, timeout=60)
