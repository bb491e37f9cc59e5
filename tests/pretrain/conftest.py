"""The main job, with the micro size on a small text, in this process."""

import importlib

import pytest
from running import EXAMPLES, write_text

pytest.importorskip("rich")
pytest.importorskip("matplotlib")


@pytest.fixture
def example(monkeypatch, tmp_path):
    """`example(name)` imports a module of the example; the working directory is a temporary one."""
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    return importlib.import_module


@pytest.fixture
def text(tmp_path):
    return write_text(tmp_path)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    """A folder with a text and a finished run of two steps, to be copied."""
    folder = tmp_path_factory.mktemp("two_steps")
    write_text(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(EXAMPLES)
        patch.chdir(folder)
        options = ["--size", "micro", "--threads", "1", "--data", "text.txt", "--steps", "2", "--out", "run"]
        assert importlib.import_module("pretrain").main(options) == 0
    return folder


@pytest.fixture
def pretrain(example, text):
    def run(*options, data=text):
        given = [*map(str, options)]
        new = [] if "--resume" in given else ["--size", "micro", "--threads", "1", "--data", str(data)]
        return example("pretrain").main([*new, *given])

    return run
