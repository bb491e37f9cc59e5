"""What Triton does across the programs and launches of a step: counting in groups, closing in the last launch.

Runs where Triton runs kernels: on a GPU, or under TRITON_INTERPRET=1 (test_triton_interpreter.py sees to that).
"""

import pytest
import torch
from support.tensors import latest, parameter

from greedylr_fused import FusedAdamW, GreedyLR

CHUNK = 64
GROUP = 4
#: Tensors of no chunk, one and several, more than a group in all, in three mixes of types.
SIZES = {torch.float32: (9 * CHUNK + 5, CHUNK, 0), torch.bfloat16: (3 * CHUNK + 1, 7), torch.float64: (2 * CHUNK,)}


@pytest.fixture
def small_chunks(device, monkeypatch):
    backend = pytest.importorskip("greedylr_fused.backends.triton.backend").TritonBackend
    if (reason := backend.unavailable(device)) is not None:
        pytest.skip(reason)
    monkeypatch.setattr(backend, "chunk_size", CHUNK)
    monkeypatch.setattr("greedylr_fused.backends.triton.measure.GROUP", GROUP)


def optimizer(backend, device, **options):
    params = [parameter(torch.ones(n, dtype=dtype, device=device)) for dtype, sizes in SIZES.items() for n in sizes]
    return params, FusedAdamW(params, lr=1e-2, backend=backend, **options)


def give_gradients(params, seed, *, without=()):
    """Small integers, whose squares add up to the same number in any order."""
    source = torch.Generator().manual_seed(seed)
    for i, param in enumerate(params):
        values = torch.randint(-3, 4, param.shape, generator=source)
        param.grad = None if i in without else values.to(param)


def test_steps_agree_with_the_reference(device, small_chunks):
    options = dict(schedule=GreedyLR(patience=0, smooth=False), max_grad_norm=1.0)
    (params, opt), (expected, reference) = (optimizer(name, device, **options) for name in ("triton", "reference"))
    for step, (without, loss) in enumerate([((), 2.0), ((0, 3), 1.0), ((), 3.0), ((), 4.0)]):
        for own in (params, expected):
            give_gradients(own, step, without=without)
            if step == 2:  # is skipped
                own[3].grad[-1] = torch.inf
        opt.step(loss=loss)
        reference.step(loss=loss)
        assert opt.read_lr() == reference.read_lr()
        assert str(latest(opt)) == str(latest(reference))  # the norm to its last bit
        for param, other in zip(params, expected, strict=True):
            assert torch.equal(opt.state[param]["step"], reference.state[other]["step"])
            torch.testing.assert_close(param, other)
    assert int(opt.state[params[0]]["step"]) == 2 and int(opt.state[params[1]]["step"]) == 3


def test_a_table_without_elements_is_closed(device, small_chunks):
    empty = parameter(torch.zeros(0, device=device))
    opt = FusedAdamW([empty], lr=1e-2, schedule=GreedyLR(patience=0, smooth=False), max_grad_norm=1.0, backend="triton")
    for loss in (2.0, 1.0):
        empty.grad = torch.zeros_like(empty)
        opt.step(loss=loss)
    assert int(opt.state[empty]["step"]) == 2
    assert opt.read_lr() != [1e-2]
