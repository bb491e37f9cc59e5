"""keep_copies: parameters in float32, and beside them what a model computes with, in 16 bits."""

import copy
import math

import pytest
import torch
from support.tensors import assert_same_bits, generator, parameter, set_grad, short, spread, stepped

from greedylr_fused import FusedAdamW

F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
HALVES = (BF16, F16)


def values(seed, *shape, dtype=F32, device="cpu"):
    return spread(generator(seed), torch.Size(shape).numel(), -6, 1).reshape(shape).to(device, dtype)


def build(backend, device, dtype=BF16, sizes=(3, 1000, 129, 40_000), **options):
    params = [parameter(values(n, n, device=device)) for n in sizes]
    copies = [torch.full_like(param, 7.0, dtype=dtype) for param in params]
    opt = FusedAdamW(params, lr=0.01, backend=backend, **options)
    opt.keep_copies(zip(params, copies, strict=True))
    return params, copies, opt


def draw(params, seed, dtype=F32):
    for i, param in enumerate(params):
        set_grad(param, values(100 * seed + i, *param.shape, device=param.device).to(dtype))


def check(params, copies):
    for param, half in zip(params, copies, strict=True):
        assert_same_bits(half, param.detach().to(half.dtype), "copy")


@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "max_grad_norm": 1.0}, {"state_dtype": BF16}], ids=str)
@pytest.mark.parametrize("dtype", HALVES, ids=short)
def test_copies_are_the_rounded_parameters(backend, device, dtype, options):
    params, copies, opt = build(backend, device, dtype, **options)
    check(params, copies)
    for step in range(3):
        draw(params, step)
        opt.step()
        check(params, copies)


@pytest.mark.parametrize("dtype", HALVES, ids=short)
def test_offloaded_optimizer(backend, device, dtype):
    """Gradients in 16 bits in, parameters in 16 bits out, and the update is that without copies."""
    params, copies, opt = build(backend, device, dtype)
    twins = [parameter(param.detach().clone()) for param in params]
    alone = FusedAdamW(twins, lr=0.01, backend=backend)
    for step in range(2):
        draw(params, step, dtype)
        for param, twin in zip(params, twins, strict=True):
            set_grad(twin, param.grad)
        stepped(opt)
        alone.step()
        check(params, copies)
        for param, twin in zip(params, twins, strict=True):
            assert_same_bits(param, twin)


def test_some_parameters_and_both_dtypes(backend, device):
    params = [parameter(values(n, n, device=device)) for n in (50, 60, 70)]
    copies = [torch.zeros(50, dtype=F16, device=device), torch.zeros(60, dtype=BF16, device=device)]
    opt = FusedAdamW(params, lr=0.01, backend=backend)
    opt.keep_copies(zip(params, copies))  # noqa: B905  the third has none
    draw(params, 1)
    stepped(opt)
    check(params[:2], copies)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_skipped_step_leaves_copies_equal(backend, device, bad):
    params, copies, opt = build(backend, device, skip_nonfinite=True)
    before = [half.clone() for half in copies]
    draw(params, 1)
    params[1].grad[500] = bad
    opt.step()
    assert opt.metrics().skipped == 1
    for half, old in zip(copies, before, strict=True):
        assert_same_bits(half, old)
    check(params, copies)


def test_a_parameter_without_gradient_is_not_copied(backend, device):
    params, copies, opt = build(backend, device)
    draw(params, 1)
    opt.step()
    params[0].grad = None
    copies[0].fill_(5.0)
    opt.step()
    assert (copies[0] == 5.0).all()
    check(params[1:], copies[1:])


LAYOUTS = {
    "channels_last": lambda t: t.to(memory_format=torch.channels_last),
    "gaps": lambda t: torch.stack([t, t], -1)[..., 0],
    "transposed": lambda t: t.transpose(1, 3).contiguous().transpose(1, 3),
}


@pytest.mark.parametrize("of_copy", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("of_param", ["contiguous", *LAYOUTS])
def test_layouts(backend, device, of_param, of_copy):
    start = values(1, 4, 6, 5, 7, device=device)
    param = parameter(LAYOUTS.get(of_param, torch.clone)(start))
    half = LAYOUTS.get(of_copy, torch.clone)(start.to(BF16))
    opt = FusedAdamW([param], lr=0.01, backend=backend)
    opt.keep_copies([(param, half)])
    for step in range(2):
        draw([param], step)
        stepped(opt)
        check([param], [half])


def test_views_at_every_offset(backend, device):
    flat = torch.full((40 * 32,), 7.0, dtype=BF16, device=device)
    params = [parameter(values(i, 33, device=device)) for i in range(16)]
    copies = [flat[i * 64 + i : i * 64 + i + 33] for i in range(16)]
    opt = FusedAdamW(params, lr=0.01, backend=backend)
    opt.keep_copies(zip(params, copies, strict=True))
    draw(params, 1)
    opt.step()
    check(params, copies)
    assert int((flat == 7.0).sum()) == flat.numel() - 16 * 33


def test_a_copy_that_moves_is_found(backend, device):
    params, copies, opt = build(backend, device)
    draw(params, 1)
    opt.step()
    left = copies[1].data
    copies[1].data = torch.zeros_like(left)
    kept = left.clone()
    draw(params, 2)
    opt.step()
    check(params, copies)
    assert_same_bits(left, kept, "memory that is no copy any more")


def test_autograd_is_told(backend, device):
    params, copies, opt = build(backend, device)
    model = torch.nn.Parameter(copies[1])
    opt.keep_copies([(params[1], model)])
    loss = (model * model).sum()
    draw(params, 1)
    opt.step()
    check(params[1:2], [model])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_replaced_dropped_and_kept(backend, device):
    params, copies, opt = build(backend, device)
    others = [half.clone() for half in copies]
    opt.keep_copies(zip(params, others, strict=True))
    before = [half.clone() for half in copies]
    draw(params, 1)
    opt.step()
    check(params, others)
    opt.load_state_dict(opt.state_dict())
    new = parameter(values(9, 10, device=device), values(8, 10, device=device))
    opt.add_param_group({"params": [new]})
    opt.step()
    check(params, others)
    opt.keep_copies([])
    kept = [half.clone() for half in others]
    opt.step()
    for half, old in zip(copies + others, before + kept, strict=True):
        assert_same_bits(half, old)


def test_a_deepcopied_optimizer_has_none(backend, device):
    params, copies, opt = build(backend, device)
    draw(params, 1)
    opt.step()
    before = [half.clone() for half in copies]
    assert "copies" not in str(opt.state_dict())
    twin = copy.deepcopy(opt)
    for param in twin.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    twin.step()
    for half, old in zip(copies, before, strict=True):
        assert_same_bits(half, old)


def test_a_copy_that_changes_its_dtype_where_it_lies_is_written_in_that(backend, device):
    params, copies, opt = build(backend, device)
    copies[1].data = copies[1].view(F16)
    draw(params, 1)
    opt.step()
    check(params, copies)


def test_mistakes_are_answered(backend, device):
    params, copies, opt = build(backend, device)
    param, half = params[1], copies[1]
    cases = {
        "expected parameters in the optimizer's param_groups, got one .*its copy second": (ValueError, [(half, param)]),
        "torch.float32 copy of a torch.float32": (TypeError, [(param, torch.zeros_like(param))]),
        r"expected the shape \(1000,\) .*, got a copy of shape \(999,\)": (ValueError, [(param, half[1:])]),
        "and device .*, got a copy .* on meta": (ValueError, [(param, half.to("meta"))]),
        r"in two pairs": (ValueError, [(param, half), (param, half.clone())]),
        "expected one copy of each parameter, got .* in two pairs": (
            ValueError,
            [(params[0], copies[0]), (param, half), (param, half)],
        ),
        r"expected pairs .*, got a Tensor": (TypeError, [half]),
        r"expected pairs .*, got a tuple": (TypeError, [(param, None)]),
    }
    for message, (error, pairs) in cases.items():
        with pytest.raises(error, match=message):
            opt.keep_copies(pairs)
    draw(params, 1)
    opt.step()
    check(params, copies)  # a call that failed changed nothing
    wide = parameter(torch.zeros(3, dtype=torch.float64, device=device))
    with pytest.raises(TypeError, match="bfloat16 copy of a torch.float64 parameter"):
        FusedAdamW([wide], backend=backend).keep_copies([(wide, wide.detach().to(BF16))])
