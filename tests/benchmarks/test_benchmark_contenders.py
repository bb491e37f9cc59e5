"""What the benchmarks measure: shapes of the published size, a roofline that changes nothing, contenders or reasons."""

import subprocess
import sys

import pytest
import torch
from support.paths import ROOT

from benchmarks.cases import peers, shapes
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.peers import Contender
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload, unsupported
from benchmarks.harness import NotOffered
from benchmarks.options import Asked
from benchmarks.report import Report
from benchmarks.throughput import optimizer_step, roofline

CPU = torch.device("cpu")
SMALL = Shapes("small", "for tests", ((100,), (7, 30), (1,), (64, 128)))

#: Parameters and tensors as published: model cards and repositories of the models, torchvision, diffusers, peft.
PUBLISHED = {
    "gpt2-124m": (124_439_808, 148),
    "qwen2.5-0.5b": (494_032_768, 290),
    "llama-3.2-1b": (1_235_814_400, 146),
    "llama-3-8b": (8_030_261_248, 291),
    "vit-l-16": (304_326_632, 296),
    "lora-llama-8b": (41_943_040, 448),
    "lora-llama-70b": (207_093_760, 1_120),
    "unet-sd15": (859_520_964, 686),
    "10000x64": (640_000, 10_000),
    "1000x64x64": (4_096_000, 1_000),
    "flat-1e8": (10**8, 1),
    "flat-1e9": (10**9, 1),
    "matrix-1e8": (10**8, 1),
    "matrix-1e9": (10**9, 1),
}


@pytest.mark.parametrize("name", shapes.NAMES)
def test_shapes_have_the_published_size(name):
    found = shapes.shapes(name)
    assert (found.elements, len(found.sizes)) == PUBLISHED[name]


@pytest.mark.parametrize(
    "name, config, options",
    [
        ("gpt2-124m", "GPT2Config", {}),
        (
            "llama-3.2-1b",
            "LlamaConfig",
            dict(vocab_size=128256, hidden_size=2048, intermediate_size=8192, num_hidden_layers=16)
            | dict(num_attention_heads=32, num_key_value_heads=8, tie_word_embeddings=True),
        ),
        (
            "qwen2.5-0.5b",
            "Qwen2Config",
            dict(vocab_size=151936, hidden_size=896, intermediate_size=4864, num_hidden_layers=24)
            | dict(num_attention_heads=14, num_key_value_heads=2, tie_word_embeddings=True),
        ),
    ],
)
def test_shapes_are_those_of_transformers(name, config, options):
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = transformers.AutoModelForCausalLM.from_config(getattr(transformers, config)(**options))
    assert sorted(tuple(p.shape) for p in model.parameters()) == sorted(shapes.shapes(name).sizes)


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_the_roofline_changes_nothing(mix):
    if reason := unsupported(mix):
        pytest.skip(reason)
    work = Workload(Shapes("odd", "", ((9001,),)), mix, CPU)
    before = {name: tensor.clone() for name, tensor in work.flat.items()}
    for form in roofline.candidates(work).values():
        form()
    assert all(torch.equal(before[name], tensor) for name, tensor in work.flat.items())


@pytest.mark.parametrize("mix", MIXES.values(), ids=MIXES)
def test_the_roofline_touches_every_line_once(mix):
    """With the gradient's bits let through: each line of what is written differs, and after a second time none."""
    if reason := unsupported(mix):
        pytest.skip(reason)
    work = Workload(Shapes("even", "", ((128, 64),)), mix, CPU)
    before = {name: tensor.clone() for name, tensor in work.flat.items()}
    forms = roofline.candidates(work, bits=2**64 - 1).values()
    for form in forms:
        form()
        for name, tensor in work.flat.items():
            same = (tensor.view(torch.int64) == before[name].view(torch.int64)).view(-1, 8).all(1)
            assert bool(same.all() if name == "grad" else not same.any()), name
        form()
        assert all(torch.equal(before[name], tensor) for name, tensor in work.flat.items())


def test_the_roofline_of_gpus_changes_nothing():
    """In Triton's interpreter, which has to be chosen before Triton is imported."""
    pytest.importorskip("triton")
    code = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from benchmarks.harness import NotOffered
from benchmarks.throughput import roofline_triton
from benchmarks.cases.mixes import MIXES
from benchmarks.cases.shapes import Shapes
from benchmarks.cases.workload import Workload, unsupported
for mix in [mix for mix in MIXES.values() if unsupported(mix) is None]:
    work = Workload(Shapes("odd", "", ((9000,),)), mix, torch.device("cpu"))
    before = {name: tensor.clone() for name, tensor in work.flat.items()}
    for form in roofline_triton.candidates(work.flat, mix, processors=1).values():
        form()
    assert all(torch.equal(before[name], tensor) for name, tensor in work.flat.items()), mix.name
"""
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=110)


@pytest.mark.parametrize("mix", MIXES)
def test_contenders_share_the_state(mix):
    """But for torch's beside a compressed one, which have theirs."""
    if reason := unsupported(MIXES[mix]):
        pytest.skip(reason)
    work = Workload(SMALL, MIXES[mix], CPU)
    addresses = [{name: tensor.data_ptr() for name, tensor in state.items()} for state in work.states]
    watched = work.flat["exp_avg_q" if MIXES[mix].eight_bit else "exp_avg"]
    theirs = ("torch-fused", "torch-foreach+clip+greedy", "torch-forloop", "torch-fused-bf16")
    for name in ("ours-cpu", "ours-reference+clip+greedy", *theirs):
        before = watched.clone()
        try:
            built = peers.build(Contender.parse(name), work)
        except NotOffered:
            assert not name.startswith("ours")
            continue
        states = built.optimizer.state.values()
        if not MIXES[mix].compressed or name.startswith("ours"):
            own = [{key: state[key].data_ptr() for key in state if key != "step"} for state in states]
            assert own == addresses
            assert not torch.equal(watched, before), "no step was made"
            assert peers.state_bytes(built) >= SMALL.elements * MIXES[mix].moments * MIXES[mix].state.itemsize
        else:
            assert built.remark == "parameters, gradients and moments in " + (
                "bfloat16" if "bf16" in name else "float32"
            )
            assert peers.state_bytes(built) >= SMALL.elements * 2 * (2 if "bf16" in name else 4)


def test_what_a_contender_cannot_do_has_a_reason():
    work = Workload(SMALL, MIXES["bf16-fp32states"], CPU)
    reasons = {}
    for name in ("ours-cuda", "torch-fused", "torch-capturable", "ours-cpu+graph", "flashoptim", "bnb-8bit+graph"):
        with pytest.raises(NotOffered) as refusal:
            peers.build(Contender.parse(name), work)
        reasons[name] = str(refusal.value)
    assert all(reasons.values()) and "CUDA" in reasons["ours-cpu+graph"]


def test_bytes_of_tensors_that_cannot_have_8_bits_are_those_of_float32_moments():
    """A matrix of 64 groups, and 64 elements that are none, by the share of each."""
    work = Workload(Shapes("two", "", ((64, 64), (64,))), MIXES["bf16-int8-8bit"], CPU)
    assert [sorted(state) for state in work.states] == [
        ["exp_avg_q", "exp_avg_scale", "exp_avg_sq_q", "exp_avg_sq_scale", "remainder"],
        ["exp_avg", "exp_avg_sq", "remainder"],
    ]
    assert work.states[1]["remainder"].dtype == torch.int16 and work.states[0]["exp_avg_scale"].shape == (64, 1)
    assert work.bytes_per_parameter() == round((4096 * 12.25 + 64 * 26) / 4160, 6)
    assert work.bytes_per_parameter(clip=True) == round((4096 * 14.25 + 64 * 28) / 4160, 6)


def test_8_bit_moments_of_vectors_are_left_out():
    found = Report("step_throughput", CPU, {})
    optimizer_step.measure("10000x64", MIXES["fp32-8bit"], [Contender.parse("ours-cpu")], Asked(CPU, 0.0), found)
    assert not found.records and found.left_out[0]["why"] == "no tensor of these shapes can have 8-bit moments"
