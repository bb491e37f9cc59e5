"""Backends: which runs where and why, and that all forms of the same formulas stay pinned to each other."""

import importlib
import io
import re
import sys
import tokenize
import types

import pytest
import torch
from support.paths import ROOT
from support.tensors import parameter

from greedylr_fused import FusedAdamW, GreedyLR, available_backends, backends
from greedylr_fused.backends import BACKENDS, Choice, base, resolve
from greedylr_fused.backends.base import Backend
from greedylr_fused.control import slots
from greedylr_fused.control.slots import BLOCKS, SLOTS
from greedylr_fused.control.vector import Control
from greedylr_fused.schedules.loss_driven import CompareWith, Event, Kind
from greedylr_fused.schedules.search import Backup, Phase
from greedylr_fused.tensors.formats import MIXES, DType, Hyper, Row

CPU = torch.device("cpu")


def native():
    return pytest.importorskip("greedylr_fused._cpu")


def test_available_backends_in_order_of_preference():
    found = available_backends()
    assert list(found) == ["cpu", "cuda", "triton", "reference"] == list(BACKENDS)
    assert found["reference"] is None
    assert all(reason is None or (isinstance(reason, str) and len(reason) > 20) for reason in found.values())
    assert available_backends("meta")["cpu"] == "it updates CPU tensors, and these are on meta"


def test_auto_takes_the_first_that_runs():
    choice = resolve("auto", CPU)
    assert choice.backend.name == next(name for name, reason in available_backends().items() if reason is None)


def test_auto_remembers_why_others_were_passed_over(monkeypatch):
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", staticmethod(lambda device: "of a test"))
    choice = resolve("auto", CPU)
    assert choice.passed_over["cpu"] == "of a test" and "not cpu: of a test" in str(choice)
    opt = FusedAdamW([parameter(torch.zeros(2))])
    assert "not cpu: of a test" in repr(opt)
    assert str(Choice(BACKENDS["cpu"], {})) == "cpu"


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_a_device_that_is_not_there_is_a_reason_and_no_exception(monkeypatch, name):
    """As cuda:7 on a machine with two GPUs, where PyTorch asserts."""
    backend = BACKENDS[name]
    if name == "cuda":
        monkeypatch.setattr(sys.modules[backend.__module__], "_native", object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert backend.unavailable(torch.device("cuda:7")) == "cuda:7 is not there: PyTorch finds 2 devices of type cuda"
    assert available_backends("cuda:7")["reference"] is None
    assert resolve("auto", torch.device("cuda:7")).backend.name == "reference"


def test_triton_without_a_compiler_for_its_driver_is_passed_over(monkeypatch):
    backend = importlib.import_module("greedylr_fused.backends.triton.backend")
    driver = pytest.importorskip("triton.runtime.driver")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(
        type(driver.driver), "active", property(lambda self: (_ for _ in ()).throw(RuntimeError("no gcc")))
    )
    backend._no_driver.cache_clear()
    try:
        reason = BACKENDS["triton"].unavailable(torch.device("cuda"))
    finally:
        backend._no_driver.cache_clear()
    assert reason == "triton's driver cannot be built or finds no device: no gcc; it needs a C compiler and Python.h"


def test_auto_asks_no_further_than_the_first_that_runs(monkeypatch):
    asked = []
    for name in ("cuda", "triton"):
        monkeypatch.setattr(BACKENDS[name], "unavailable", staticmethod(asked.append))
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", staticmethod(lambda device: None))
    assert resolve("auto", CPU).backend.name == "cpu" and not asked


def test_an_explicit_request_runs_or_says_why(monkeypatch):
    monkeypatch.setattr(BACKENDS["cpu"], "unavailable", staticmethod(lambda device: "no compiler was found"))
    with pytest.raises(RuntimeError) as caught:
        FusedAdamW([parameter(torch.zeros(2))], backend="cpu")
    for part in ('backend="cpu" cannot run on cpu', "no compiler was found", "reference", 'backend="auto"'):
        assert part in str(caught.value)
    assert repr(FusedAdamW([parameter(torch.zeros(2))], backend="reference")).count("backend: reference") == 1


def test_triton_on_a_cpu_names_the_remedy():
    reason = available_backends()["triton"]
    if reason is None:
        pytest.skip("the interpreter is on in this process")
    assert "TRITON_INTERPRET=1" in reason or "cannot be imported" in reason


def test_a_module_that_was_not_built_says_why(monkeypatch, tmp_path):
    from greedylr_fused.backends import native

    report = tmp_path / "_build.json"
    monkeypatch.setattr(native, "BUILD_REPORT", report)
    module, reason = native.load("_absent")
    assert module is None and "greedylr_fused._absent is not usable: No module named" in reason
    report.write_text('{"_absent": {"built": false, "reason": "no C++17 compiler"}}')
    assert native.load("_absent") == (None, "greedylr_fused._absent is not usable: no C++17 compiler")


@pytest.mark.parametrize("name", ["SLOTS", "MIXES", "ROWS"])
def test_a_module_built_from_other_sources_is_refused(monkeypatch, name):
    module = native()
    from greedylr_fused.backends import native as loader

    assert loader.load("_cpu") == (module, "")
    monkeypatch.delattr(module, name)
    assert "built from other sources" in loader.load("_cpu")[1]


def test_a_backend_without_its_module_gives_the_reason(monkeypatch):
    from greedylr_fused.backends import cpu, cuda

    for backend, module in ((cpu.CpuBackend, cpu), (cuda.CudaBackend, cuda)):
        monkeypatch.setattr(module, "_native", None)
        monkeypatch.setattr(module, "_reason", "of a test")
        assert backend.unavailable(torch.device(backend.name)) == "of a test"


@pytest.mark.parametrize("name", BACKENDS)
def test_protocol(name):
    backend = BACKENDS[name]
    assert backend.name == name and backend.chunk_size >= 1024
    for method in ("measure", "clip", "update", "send", "unavailable"):
        assert callable(getattr(backend, method)) and hasattr(Backend, method)


def test_exports():
    assert set(backends.__all__) <= set(dir(backends))


def test_slots_are_the_same_in_every_language():
    """Names, order, words and the blocks under which they stand."""
    assert native().SLOTS == SLOTS
    header = (ROOT / "csrc/core/slots.h").read_text()
    for name in ("CONFIGURATION", "MEMORY", "STEP"):
        rows = re.search(rf"#define GREEDYLR_{name}\(X\)(.*?[^\\])$", header, re.S | re.M)[1]
        listed = re.findall(r"X\((\w+)\)\s*/\* (.*?) \*/", rows)
        assert listed == [(slot, words) for slot, _, words in getattr(slots, name)]
    blocks = re.search(r"#define GREEDYLR_BLOCKS\(X\)(.*)", header)[1]
    assert tuple(re.findall(r"X\((\w+)\)", blocks)) == BLOCKS


@pytest.mark.parametrize("codes", [Kind, CompareWith, Event, Phase, Backup], ids=lambda codes: codes.__name__)
def test_codes_in_slots_are_the_same_in_every_language(codes):
    header = (ROOT / "csrc/core/slots.h").read_text()
    listed = re.search(rf"enum class {codes.__name__} : int {{ (.*?) }};", header)[1].split(", ")
    assert [(code.name, code.value) for code in codes] == list(zip(listed, range(len(listed)), strict=True))


def test_dtypes_and_mixes_are_the_same_in_every_language():
    assert native().DTYPES == {d.name: d.value for d in DType}
    assert set(native().MIXES) == {tuple(map(int, mix)) for mix in MIXES} and len(MIXES) == len(native().MIXES) == 24


def test_rows_and_columns_are_the_same_in_every_language():
    assert native().ROWS == tuple(Row.__members__) and list(Row) == list(range(len(Row)))
    header = (ROOT / "csrc/core/common.h").read_text()
    listed = re.findall(r"(\w+) = (\d+)", re.search(r"enum Hyper : int {(.*?)};", header, re.S)[1])
    assert dict(listed) == {column.name: str(int(column)) for column in Hyper} | {"HYPER_COUNT": str(len(Hyper))}


def test_the_control_vector_has_the_documented_size():
    control = Control(
        GreedyLR(smooth=True, window_size=7), [0.1, 0.2], max_grad_norm=1.0, skip_nonfinite=True, device=CPU
    )
    assert control.vector.shape == (91 + 5 * 2 + 7,) and control.vector.dtype == torch.float64 and len(SLOTS) == 91


TAG = re.compile(r"(?://|#)\s*([ACGKLS]\d)\b(?!\s*(?:-|\.\.|to))")
FORMS = {
    "csrc/core/adamw.h": "A",
    "csrc/core/control.h": "GS",
    "csrc/core/observe.h": "C",
    "csrc/core/search.h": "L",
    "csrc/core/spikes.h": "K",
    "greedylr_fused/backends/adamw.py": "A",
    "greedylr_fused/schedules/loss_spec.py": "C",
    "greedylr_fused/schedules/search_spec.py": "L",
    "greedylr_fused/schedules/spikes.py": "K",
    "greedylr_fused/backends/reference.py": "G",
    "greedylr_fused/backends/control.py": "CS",
    "greedylr_fused/backends/search.py": "L",
    "greedylr_fused/backends/spikes.py": "K",
    "greedylr_fused/backends/triton/control.py": "GS",
    "greedylr_fused/backends/triton/observe.py": "C",
    "greedylr_fused/backends/triton/search.py": "L",
    "greedylr_fused/backends/triton/spikes.py": "K",
    "greedylr_fused/backends/triton/adamw.py": "A",
}
COUNT = {"A": 6, "G": 4, "K": 4, "C": 9, "L": 9, "S": 3}


def comments(path):
    text = path.read_text()
    if path.suffix == ".py":
        return [t.string for t in tokenize.generate_tokens(io.StringIO(text).readline) if t.type == tokenize.COMMENT]
    return re.findall(r"//.*", text)


@pytest.mark.parametrize("path", FORMS)
def test_every_form_has_the_same_steps_in_the_same_order(path):
    found = [tag[1] for comment in comments(ROOT / path) if (tag := TAG.match(comment))]
    want = [f"{letter}{i}" for letter in FORMS[path] for i in range(1, COUNT[letter] + 1)]
    order = sorted(dict.fromkeys(found), key=lambda tag: FORMS[path].index(tag[0]))  # letters may come in any order
    assert order == want


class Pinned(torch.Tensor):
    """Words whose pinned copies are counted, with a target that seems to lie on a GPU."""

    pinned = 0

    def pin_memory(self):
        Pinned.pinned += 1
        return self.as_subclass(torch.Tensor).clone()


def test_words_of_a_capture_lie_in_memory_that_was_pinned_before(monkeypatch):
    """PyTorch before 2.11 pins none during a capture; and no graph shares its words with another or with a step."""
    capturing = [False]
    monkeypatch.setattr("greedylr_fused.backends.base.capturing", lambda device: capturing[0])
    monkeypatch.setattr(Pinned, "pinned", 0)
    words = torch.arange(3).as_subclass(Pinned)
    device, received = types.SimpleNamespace(type="cuda"), []
    target = types.SimpleNamespace(device=device, copy_=lambda staging, non_blocking: received.append(staging))
    staging = base.Staging(types.SimpleNamespace(device=device, words=(words,)))
    assert Pinned.pinned == 1
    kept = []
    for captures in (False, True, False, True):
        capturing[0], before = captures, Pinned.pinned
        words += 1
        kept.append(staging.send(target, words))
        assert Pinned.pinned == before or not captures
    assert [own.tolist() for own in kept] == [[i, i + 1, i + 2] for i in range(1, 5)]
    assert all(own is sent for own, sent in zip(kept, received, strict=True))
    assert len({own.data_ptr() for own in kept}) == 4


def test_more_launches_than_mixes_are_refused():
    """Kernels have room for one of each."""
    words = torch.zeros(8, dtype=torch.int64)
    arrays = dict.fromkeys(
        ("ptrs", "numel", "group", "hyper", "norm_weight", "chunk_tensor", "chunk_index", "control", "curve"),
        words.data_ptr(),
    )
    sizes = dict(n_tensors=0, n_chunks=0, chunk=64, l1=False, tuned=False)
    native().TensorTable(**arrays, **sizes, launches=[(0, 0, 0, 0, 0)] * 24)
    with pytest.raises(ValueError, match="got 25 launches; there may be one per mix, 24 in all"):
        native().TensorTable(**arrays, **sizes, launches=[(0, 0, 0, 0, 0)] * 25)
