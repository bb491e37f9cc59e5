"""AdamC: a weight decay that falls with the square of the LR, in the groups that ask for it, on every backend."""

import copy
import pickle

import pytest
import torch
from support.tensors import assert_same, assert_same_bits, parameter, snapshot

from greedylr_fused import FusedAdamW, GreedyLR, Linear, Mechanic

KEY = "corrected_weight_decay"
DECAY = 0.1


def draw(seed, device, dtype=torch.float64, shape=(7, 5)):
    rng = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=rng, dtype=torch.float64).to(device, dtype)


def of_one(device, dtype=torch.float64, **options):
    param = parameter(draw(0, device, dtype), draw(1, device, dtype))
    return param, FusedAdamW([param], lr=0.2, weight_decay=DECAY, **options)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_it_is_adamw_whose_weight_decay_is_set_at_every_step(backend, device, dtype):
    """The oracle is torch's, given weight_decay * lr / peak; the two round the factor of A2 once each."""
    param, opt = of_one(device, dtype, schedule=Linear(6), backend=backend, corrected_weight_decay=True)
    other = torch.nn.Parameter(draw(0, device, dtype))
    theirs = torch.optim.AdamW([other], lr=0.2)
    for t in range(5):
        lr = 0.2 * (1 - t / 6)
        theirs.param_groups[0] |= {"lr": lr, "weight_decay": DECAY * lr / 0.2}
        param.grad = draw(10 + t, device, dtype)
        other.grad = param.grad.clone()
        opt.step()
        theirs.step()
    torch.testing.assert_close(param, other, rtol=16 * torch.finfo(dtype).eps, atol=16 * torch.finfo(dtype).eps)


def test_with_no_gradient_it_is_all_that_happens_to_the_bit(backend, device):
    """Group 0 asks for it, group 1 has a peak of its own, group 2 is plain; a raised LR decays by more."""
    params = [parameter(draw(n, device), torch.zeros(7, 5, dtype=torch.float64, device=device)) for n in range(3)]
    asked = (True, 0.5, False)
    groups = [{"params": [param], KEY: own} for param, own in zip(params, asked, strict=True)]
    opt = FusedAdamW(groups, lr=0.2, weight_decay=DECAY, backend=backend)
    assert [group.get(KEY) for group in opt.param_groups] == [0.2, 0.5, None]
    for lr in (0.2, 0.05, 0.8):
        opt.set_lr(lr)
        decays = (lr * (DECAY / 0.2), lr * (DECAY / 0.5), DECAY)
        want = [param.detach() * (1 - lr * decay) for param, decay in zip(params, decays, strict=True)]
        opt.step()
        for param, value in zip(params, want, strict=True):
            assert_same_bits(param.detach(), value)


def test_at_the_peak_it_is_the_plain_weight_decay(backend, device):
    """To the bit where the peak is a power of two, by which the decay is divided without rounding."""
    found = []
    for corrected in (True, False):
        param = parameter(draw(0, device, torch.float32), draw(1, device, torch.float32))
        opt = FusedAdamW([param], lr=0.125, weight_decay=DECAY, backend=backend, corrected_weight_decay=corrected)
        for _ in range(3):
            opt.step()
        found.append(param.detach())
    assert_same_bits(*found)


def test_the_loss_moves_it_with_the_lr(backend, device):
    """GreedyLR cuts to half the starting LR: a quarter of the decay."""
    schedule = GreedyLR(patience=0, factor=0.5, smooth=False)
    param = parameter(draw(0, device), torch.zeros(7, 5, dtype=torch.float64, device=device))
    opt = FusedAdamW([param], lr=0.2, weight_decay=DECAY, schedule=schedule, backend=backend, **{KEY: True})
    opt.step(loss=1.0)
    opt.step(loss=2.0)
    opt.step(loss=3.0)
    before = param.detach().clone()
    (lr,) = opt.read_lr()
    assert lr == 0.1
    opt.step(loss=4.0)
    assert_same_bits(param.detach(), before * (1 - lr * (lr * (DECAY / 0.2))))


@pytest.mark.parametrize("lr", [0.5, 0.25])
def test_a_tuner_moves_by_it(backend, device, lr):
    """As by the plain weight decay that it is at this LR: peaks of a power of two divide without rounding."""
    found = []
    for options in ({KEY: 0.5}, {"weight_decay": DECAY * lr / 0.5}):
        param = parameter(draw(0, device, torch.float32), draw(1, device, torch.float32))
        opt = FusedAdamW([param], **({"lr": lr, "weight_decay": DECAY} | options), tuner=Mechanic(), backend=backend)
        for _ in range(4):
            opt.step()
        found.append(param.detach())
    assert_same_bits(*found)


def test_a_peak_that_is_written_counts_from_the_next_step(backend, device):
    param, opt = of_one(device, backend=backend)
    opt.step()
    param.grad.zero_()
    opt.state[param]["exp_avg"].zero_()
    for written, decay in ((0.4, 0.2 * (DECAY / 0.4)), (0.8, 0.2 * (DECAY / 0.8)), (0, DECAY), (False, DECAY)):
        opt.param_groups[0][KEY] = written
        want = param.detach() * (1 - 0.2 * decay)
        opt.step()
        assert_same_bits(param.detach(), want)
    opt.param_groups[0][KEY] = 0.4
    opt.step()
    del opt.param_groups[0][KEY]
    want = param.detach() * (1 - 0.2 * DECAY)
    opt.step()
    assert_same_bits(param.detach(), want)
    opt.param_groups[0][KEY] = True
    with pytest.raises(
        TypeError, match=r'expected the peak LR as "corrected_weight_decay".*got True; write the number'
    ):
        opt.step()


@pytest.mark.parametrize("road", ["state_dict", "pickle", "deepcopy"])
def test_a_run_goes_on_with_its_peak(backend, device, road):
    """Not with the LR at which it was stopped."""
    param, opt = of_one(device, schedule=Linear(6), backend=backend, corrected_weight_decay=True)
    for _ in range(3):
        opt.step()
    if road == "state_dict":
        other, again = of_one(device, schedule=Linear(6), backend=backend)
        again.load_state_dict(copy.deepcopy(opt.state_dict()))
        other.data.copy_(param.data)
    else:
        again = pickle.loads(pickle.dumps(opt)) if road == "pickle" else copy.deepcopy(opt)
        (other,) = again.param_groups[0]["params"]
        other.grad = param.grad.clone()
    assert again.param_groups[0][KEY] == 0.2
    for one in (opt, again):
        one.step()
    assert_same(snapshot(again), snapshot(opt))


def test_a_checkpoint_that_says_nothing_leaves_it_on(backend, device):
    _, plain = of_one(device, backend=backend)
    plain.step()
    _, opt = of_one(device, backend=backend, corrected_weight_decay=True)
    opt.load_state_dict(plain.state_dict())
    assert opt.param_groups[0][KEY] == 0.2 and KEY not in plain.state_dict()["param_groups"][0]
    assert KEY not in opt.export_state_dict()["param_groups"][0]


@pytest.mark.parametrize("value", [-1.0, 0.0, float("inf"), float("nan"), "peak"], ids=str)
def test_what_is_no_peak_is_refused(value):
    with pytest.raises(ValueError, match=f"{KEY} of parameter group 0: expected True, False or a finite peak LR > 0"):
        of_one("cpu", corrected_weight_decay=value)


def test_an_lr_of_zero_is_no_peak():
    param = parameter(torch.zeros(2))
    with pytest.raises(ValueError, match=f"{KEY} of parameter group 0: expected a peak LR, where the group's lr is 0"):
        FusedAdamW([param], lr=0.0, corrected_weight_decay=True)
    opt = FusedAdamW([param], lr=0.1)
    with pytest.raises(ValueError, match="parameter group 1"):
        opt.add_param_group({"params": [parameter(torch.zeros(2))], KEY: -2.0})
    assert len(opt.param_groups) == 1
