"""Every size and every layout that a parameter or a gradient may have."""

import pytest
import torch
from support.tensors import (
    FLOATS,
    assert_same_bits,
    flat,
    generator,
    latest,
    parameter,
    set_grad,
    short,
    spread,
    stepped,
)

from greedylr_fused import FusedAdamW
from greedylr_fused.backends import BACKENDS

pytestmark = pytest.mark.usefixtures("watched")


def values(seed, *shape, dtype=torch.float32, device="cpu"):
    n = torch.Size(shape).numel()
    return spread(generator(seed), n, -2, 0).reshape(shape).to(device, dtype)


def check(opt, steps=2):
    params = [p for group in opt.param_groups for p in group["params"]]
    for step in range(steps):
        for i, param in enumerate(params):
            grad = values(100 * step + i, *param.shape, device=param.device)
            if param.is_complex():
                grad = torch.complex(grad, values(7000 + i, *param.shape, device=param.device))
            set_grad(param, grad.to(param.dtype))
        stepped(opt)


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_sizes_0_to_129(backend, device, dtype):
    sizes = range(130) if dtype.itemsize == 4 or dtype == torch.bfloat16 else [*range(34), 63, 64, 65, 127, 128, 129]
    params = [parameter(values(n, n, dtype=dtype, device=device)) for n in sizes]
    check(FusedAdamW(params, lr=0.01, backend=backend), steps=1)


@pytest.mark.parametrize("amsgrad", [False, True])
def test_several_chunks(backend, device, amsgrad):
    chunk = BACKENDS[backend].chunk_size
    sizes = (2 * chunk + 17, chunk, chunk - 1, chunk + 1, 3)
    params = [parameter(values(n, n, device=device)) for n in sizes]
    check(FusedAdamW(params, lr=0.01, amsgrad=amsgrad, backend=backend), steps=1)


def test_tail_errors_equal_interior_errors(backend, device):
    """The same number gives the same bits wherever in a tensor it lies."""
    chunk = BACKENDS[backend].chunk_size
    param = parameter(torch.full((chunk + 29,), 0.7, device=device))
    opt = FusedAdamW([param], lr=0.01, backend=backend)
    for _ in range(2):
        param.grad = torch.full_like(param, 0.3)
        opt.step()
    for tensor in (param, opt.state[param]["exp_avg"], opt.state[param]["exp_avg_sq"]):
        assert tensor.unique().numel() == 1


def test_scalar_and_empty_parameters(backend, device):
    params = [
        parameter(values(i, *shape, device=device)) for i, shape in enumerate(((), (0,), (3, 0, 5), (1,), (1, 1)))
    ]
    opt = FusedAdamW(params, lr=0.01, backend=backend)
    check(opt, steps=3)
    assert [float(opt.state[p]["step"]) for p in params] == [3.0] * 5  # a group of nothing advances too


def test_only_empty_parameters(backend, device):
    param = parameter(torch.zeros(0, device=device))
    opt = FusedAdamW([param], max_grad_norm=1.0, backend=backend)
    check(opt)
    assert latest(opt).grad_norm == 0.0


def test_mixed_dtypes_in_one_optimizer(backend, device):
    params = [parameter(values(i, 260 + i, dtype=FLOATS[i % 4], device=device)) for i in range(8)]
    check(FusedAdamW(params, lr=0.01, backend=backend))


def channels_last(device):
    return values(1, 4, 6, 5, 7, device=device).to(memory_format=torch.channels_last)


def transposed(device):
    return values(2, 40, 30, device=device).t()


def sliced(device):
    return values(3, 60, 40, device=device)[::2, 1::3]


def expanded_gap(device):
    return values(4, 1200, device=device)[::5]


LAYOUTS = {f.__name__: f for f in (channels_last, transposed, sliced, expanded_gap)}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_parameter_layouts(backend, device, layout):
    param = parameter(LAYOUTS[layout](device))
    strides, address = param.stride(), param.data_ptr()
    opt = FusedAdamW([param], lr=0.01, amsgrad=True, backend=backend)
    check(opt)
    assert (param.stride(), param.data_ptr()) == (strides, address)
    want = torch.optim.AdamW([parameter(LAYOUTS[layout](device))])
    twin = want.param_groups[0]["params"][0]
    twin.grad = torch.zeros_like(twin)
    want.step()
    assert opt.state[param]["exp_avg"].stride() == want.state[twin]["exp_avg"].stride()


def test_memory_between_the_elements_of_a_view_is_left_alone(backend, device):
    base = values(3, 60, 40, device=device)
    before = base.clone()
    param = parameter(base[::2, 1::3])
    check(FusedAdamW([param], lr=0.01, backend=backend))
    touched = torch.zeros_like(base, dtype=torch.bool)
    touched[::2, 1::3] = True
    assert_same_bits(base[~touched], before[~touched])
    assert not torch.equal(base[touched], before[touched])


@pytest.mark.parametrize("param_layout", ["contiguous", *LAYOUTS])
@pytest.mark.parametrize("grad_layout", ["contiguous", "reversed", "expanded", "gaps"])
def test_gradients_in_other_strides(backend, device, param_layout, grad_layout):
    values_of = LAYOUTS.get(param_layout, lambda d: values(5, 30, 40, device=d))
    param = parameter(values_of(device))
    grad = values(6, *param.shape, device=device)
    order = list(range(grad.dim()))[::-1]
    if grad_layout == "reversed":
        grad = grad.permute(order).contiguous().permute(order)
    elif grad_layout == "expanded":
        grad = grad.flatten()[:1].reshape([1] * grad.dim()).expand(param.shape)
    elif grad_layout == "gaps":
        grad = torch.stack([grad, grad + 1], -1)[..., 0]
    param.grad = grad
    kept, strides = grad.clone(), grad.stride()
    opt = FusedAdamW([param], lr=0.01, max_grad_norm=1e9, backend=backend)
    for _ in range(2):
        stepped(opt)
    assert param.grad is grad and grad.stride() == strides
    assert_same_bits(grad, kept)


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128], ids=short)
@pytest.mark.parametrize("options", [{}, {"amsgrad": True, "maximize": True}, {"max_grad_norm": 1e9}], ids=str)
def test_complex_parameters(backend, device, dtype, options):
    part = dtype.to_real()
    params = [
        parameter(torch.complex(values(i, *s, dtype=part, device=device), values(9 + i, *s, dtype=part, device=device)))
        for i, s in enumerate(((33, 20), (129,), ()))
    ]
    opt = FusedAdamW(params, lr=0.01, backend=backend, **options)
    check(opt)
    assert opt.state[params[0]]["exp_avg"].dtype == dtype


def test_conjugated_and_negated_gradients(backend, device):
    """Lazy conjugation and negation are flags on a tensor, invisible in its memory."""
    base = torch.complex(values(1, 300, device=device), values(2, 300, device=device))
    first, second = parameter(base.clone()), parameter(base.clone())
    lazy = parameter(values(3, 300, device=device))
    grad = torch.complex(values(4, 300, device=device), values(5, 300, device=device))
    first.grad, second.grad, lazy.grad = grad.conj(), grad.conj().resolve_conj().clone(), grad.conj().imag
    assert first.grad.is_conj() and lazy.grad.is_neg()
    opt = FusedAdamW([first, second, lazy], lr=0.01, backend=backend)
    stepped(opt)
    assert_same_bits(first, second)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=short)
def test_real_gradients_of_complex_parameters(backend, device, dtype):
    """Half the memory of the parameter, whatever its elements are."""
    param, twin = (parameter(torch.ones(300, dtype=torch.complex64, device=device)) for _ in range(2))
    set_grad(param, values(1, 300, dtype=dtype, device=device))
    set_grad(twin, param.grad.to(torch.complex64))
    FusedAdamW([param, twin], lr=0.01, backend=backend).step()
    assert_same_bits(param, twin)


def test_complex_norm_counts_both_parts(backend, device):
    param = parameter(torch.zeros(2, dtype=torch.complex64, device=device))
    param.grad = torch.tensor([3 + 4j, 12j], device=device)
    opt = FusedAdamW([param], max_grad_norm=1e9, backend=backend)
    opt.step()
    assert latest(opt).grad_norm == 13.0


@pytest.mark.filterwarnings("ignore:optimizer contains a parameter group with duplicate parameters")  # the case itself
def test_tied_parameters_are_stepped_once(backend, device):
    tied, other = (parameter(values(i, 500, device=device)) for i in (1, 2))
    twin, twin_other = (parameter(flat(p)) for p in (tied, other))
    opt = FusedAdamW([tied, other, tied], lr=0.01, max_grad_norm=1e9, backend=backend)
    once = FusedAdamW([twin, twin_other], lr=0.01, max_grad_norm=1e9, backend=backend)
    for step in range(2):
        for a, b in ((tied, twin), (other, twin_other)):
            a.grad = values(step, 500, device=device)
            b.grad = a.grad.clone()
        opt.step()
        once.step()
        assert latest(opt).grad_norm == latest(once).grad_norm
    assert_same_bits(tied, twin)
    assert float(opt.state[tied]["step"]) == 2.0


@pytest.mark.parametrize("dtype", FLOATS, ids=short)
def test_views_into_flat_buffers_at_every_offset(backend, device, dtype):
    """Parameter, gradient and moments each start at every offset within 16 bytes of alignment, and not together."""
    n, count = 150, 16 // dtype.itemsize
    starts = [(a,) * 4 for a in range(count)] + [(a, 3 * a + 1, a + 1, 5 * a + 2) for a in range(count)]
    buffers = [values(i, (n + 32) * len(starts), dtype=dtype, device=device).abs() for i in range(4)]
    params, opt_state = [], []
    for i, shifts in enumerate(starts):
        at = [(n + 26) // 16 * 16 * i + shift % count for shift in shifts]
        p, g, m, v = (buffer[start : start + n] for buffer, start in zip(buffers, at, strict=True))
        params.append(parameter(p, g))
        opt_state.append({"step": torch.tensor(1.0, device=device), "exp_avg": m, "exp_avg_sq": v})
    opt = FusedAdamW(params, lr=0.01, max_grad_norm=1e9, backend=backend)
    for param, state in zip(params, opt_state, strict=True):
        opt.state[param] = dict(state)
    stepped(opt)
    for param, state in zip(params, opt_state, strict=True):
        assert opt.state[param]["exp_avg"].data_ptr() == state["exp_avg"].data_ptr(), "moments are updated in place"


@pytest.mark.gpu
def test_more_than_2_to_the_31_elements(backend, device):
    if device.type != "cuda" or torch.cuda.mem_get_info(device)[0] < 36 * 2**31:
        pytest.skip("needs a GPU with 72 GiB free: the reference makes float32 copies")
    n = 2**31 + 4099
    param = parameter(torch.zeros(n, dtype=torch.bfloat16, device=device))
    param.grad = torch.ones_like(param)
    opt = FusedAdamW([param], lr=1.0, weight_decay=0.0, max_grad_norm=1e9, backend=backend)
    opt.step()
    at = torch.tensor([0, 2**31 - 1, 2**31, 2**31 + 1, n - 1], device=device)
    assert (param.detach()[at] == -1).all()
    assert latest(opt) and opt.read_lr() == [1.0]
