"""State that others hold: kept dictionaries, copies, tensors shared between optimizers and processes, as in torch."""

import copy
import pickle

import pytest
import torch
from support.tensors import assert_same_bits, parameter

from greedylr_fused import Cosine, FusedAdamW, GreedyLR

SIZES = (5, 3, 300)


def params_on(device, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [parameter(torch.randn(size, generator=generator).to(device)) for size in SIZES]


def with_gradients(params, seed):
    generator = torch.Generator().manual_seed(100 + seed)
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator).to(param)


def prepared(params, step=7.0):
    """States as torch's examples of asynchronous training make them: before the first step, to be shared."""
    return {
        param: {
            "step": torch.tensor(step, device=param.device),
            "exp_avg": torch.full_like(param, 0.1),
            "exp_avg_sq": torch.full_like(param, 0.2),
        }
        for param in params
    }


def workers(kind, device, **options):
    """Two optimizers over the same parameters and the same state."""
    params = params_on(device)
    states = prepared(params)
    found = [kind(params, lr=0.01, **options) for _ in range(2)]
    for opt in found:
        for param in params:
            opt.state[param] = states[param]
    return params, states, found


def test_optimizers_that_share_their_state(device, backend):
    """As asynchronous workers do (Hogwild): each counts on from where all are, in the user's own tensors."""
    results = []
    for kind, options in ((FusedAdamW, {"backend": backend}), (torch.optim.AdamW, {})):
        params, states, opts = workers(kind, device, **options)
        own = [state["step"] for state in states.values()]
        for i in range(4):
            with_gradients(params, i)
            opts[i % 2].step()
        assert all(opt.state[param]["step"] is count for opt in opts for param, count in zip(params, own, strict=True))
        assert [float(count) for count in own] == [11.0] * 3
        results.append(params)
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    "count",
    [
        lambda: 7,
        lambda: 7.0,
        lambda: torch.tensor(7),
        lambda: torch.tensor(7.0, dtype=torch.float64),
        lambda: torch.full((1,), 7.0),
        lambda: torch.full((9,), 7.0)[3],
    ],
    ids=["int", "float", "int64", "float64", "one element", "view"],
)
def test_whatever_counts_the_steps(device, backend, count):
    (param, *_) = params_on(device)
    opt = FusedAdamW([param], backend=backend)
    opt.state[param] = prepared([param])[param] | {"step": count()}
    for i in range(2):
        with_gradients([param], i)
        opt.step()
    found = opt.state[param]["step"]
    assert float(found) == 9.0 and found.dtype == torch.float32 and found.device == param.device
    with_gradients([param], 2)
    found.add_(1)  # anybody may
    opt.step()
    assert float(opt.state[param]["step"]) == 11.0


def test_one_count_of_several_parameters(device, backend):
    """Each of them counts for itself: counting in one place, they would race."""
    params = params_on(device)
    opt = FusedAdamW(params, backend=backend)
    states = prepared(params)
    for param in params:
        opt.state[param] = states[param] | {"step": states[params[0]]["step"]}
    for i in range(3):
        with_gradients(params, i)
        opt.step()
    assert [float(opt.state[param]["step"]) for param in params] == [10.0] * 3


def test_a_kept_state_dict_is_of_one_age(device, backend):
    """That of now, counts and moments alike; a deep copy keeps that of then."""
    params = params_on(device)
    opt = FusedAdamW(params, backend=backend)
    with_gradients(params, 0)
    opt.step()
    kept = opt.state_dict()
    then = copy.deepcopy(kept)
    with_gradients(params, 1)
    opt.step()
    now = opt.state_dict()
    for index, state in kept["state"].items():
        assert float(state["step"]) == 2.0 and float(then["state"][index]["step"]) == 1.0
        for name, value in state.items():
            assert_same_bits(value, now["state"][index][name])
            assert not torch.equal(value, then["state"][index][name])


def test_a_kept_state_dict_takes_the_schedule_back(device, backend):
    """To the step and LR of then, as the numbers in it say; its tensors are those of now."""
    params = params_on(device)
    opt = FusedAdamW(params, lr=0.1, schedule=Cosine(10), backend=backend)
    for i in range(3):
        with_gradients(params, i)
        opt.step()
    kept, lrs = opt.state_dict(), opt.read_lr()
    for i in range(4):
        with_gradients(params, i)
        opt.step()
    for _ in range(2):
        opt.load_state_dict(kept)
        assert opt.metrics().step == 3 and opt.read_lr() == lrs
    kept["param_groups"][0]["lr"] = 0.01
    opt.load_state_dict({**kept, "state": {key: dict(own) for key, own in kept["state"].items()}})
    assert opt.metrics().step == 3 and opt.read_lr() == [0.01]
    assert {float(state["step"]) for state in opt.state.values()} == {7.0}


def test_a_shallow_copy_shares_the_state(device, backend):
    """As torch's: whichever steps, both have stepped."""
    results = []
    for kind, options in ((FusedAdamW, {"backend": backend}), (torch.optim.AdamW, {})):
        params = params_on(device)
        opt = kind(params, lr=0.01, **options)
        with_gradients(params, 0)
        opt.step()
        twin = copy.copy(opt)
        for i, one in enumerate((twin, opt, twin, twin)):
            with_gradients(params, 1 + i)
            one.step()
        assert [float(opt.state[param]["step"]) for param in params] == [5.0] * 3
        results.append(params)
    for ours, torchs in zip(*results, strict=True):
        torch.testing.assert_close(ours, torchs, rtol=1e-6, atol=1e-7)


def test_a_state_swapped_in_for_a_step(device, backend):
    """By torch's own context manager: what was swapped in has stepped, what was there before has not."""
    stateless = pytest.importorskip("torch.optim._stateless")
    params, others = params_on(device), params_on(device, seed=1)
    opt = FusedAdamW(params, lr=0.01, backend=backend)
    with_gradients(params, 0)
    opt.step()
    saved = copy.deepcopy(opt.state_dict())
    before = [param.detach().clone() for param in params]
    reference = copy.deepcopy(opt)
    with_gradients(others, 1)
    with stateless.swap_in_optimizer_params_and_state(opt, dict(enumerate(others)), saved):
        opt.step()
    assert [float(state["step"]) for state in saved["state"].values()] == [2.0] * 3
    assert [float(opt.state[param]["step"]) for param in params] == [1.0] * 3
    for param, value in zip(params, before, strict=True):
        assert_same_bits(param, value)
    for param, other in zip(reference.param_groups[0]["params"], params_on(device, seed=1), strict=True):
        param.data.copy_(other.data)
    with_gradients(reference.param_groups[0]["params"], 1)
    reference.step()
    for mine, other in zip(reference.param_groups[0]["params"], others, strict=True):
        assert_same_bits(mine, other)
    with_gradients(params, 2)
    opt.step()
    assert [float(opt.state[param]["step"]) for param in params] == [2.0] * 3


def test_a_pickle_has_counts_of_its_own(device, backend):
    params = params_on(device)
    opt = FusedAdamW(params, schedule=GreedyLR(smooth=False), backend=backend)
    with_gradients(params, 0)
    opt.step(loss=1.0)
    twin = pickle.loads(pickle.dumps(opt))
    with_gradients(params, 1)
    opt.step(loss=1.0)
    assert [float(state["step"]) for state in twin.state.values()] == [1.0] * 3
    assert [float(state["step"]) for state in opt.state.values()] == [2.0] * 3
