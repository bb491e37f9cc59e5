"""What is built within `torch.inference_mode`, as an evaluation may do that goes back to an earlier checkpoint."""

import copy

import pytest
import torch
from support.reach import tensors_in
from support.tensors import assert_same_bits, parameter

from greedylr_fused import WSD, DeviceSchedule, FusedAdamW, GreedyLR
from greedylr_fused.telemetry import Recorder


def params_on(device):
    generator = torch.Generator().manual_seed(0)
    return [parameter(torch.randn(size, generator=generator).to(device)) for size in (3, 40)]


def step(opt, seed):
    generator = torch.Generator().manual_seed(seed)
    for group in opt.param_groups:
        for param in group["params"]:
            param.grad = torch.randn(param.shape, generator=generator).to(param)
    opt.step(loss=torch.tensor(3.0 - seed))


def build(params, backend):
    return FusedAdamW(params, lr=0.1, schedule=GreedyLR(base=WSD()), max_grad_norm=1.0, backend=backend)


def constructed(params, backend, path):
    with torch.inference_mode():
        return build(params, backend)


def loaded(params, backend, path):
    opt = build(params, backend)
    step(opt, 0)
    saved = copy.deepcopy(opt.state_dict())
    step(opt, 1)
    with torch.inference_mode():
        opt.load_state_dict(saved)
    return opt


def grown(params, backend, path):
    opt = build(params[:1], backend)
    step(opt, 0)
    with torch.inference_mode():
        opt.add_param_group({"params": params[1:]})
        opt.read_lr()
    return opt


def recorded(params, backend, path):
    opt = build(params, backend)
    with torch.inference_mode():
        vars(opt)["recorder"] = Recorder(opt, path, grad_norms=True)
    return opt


def decaying(params, backend, path):
    opt = build(params, backend)
    with torch.inference_mode():
        opt.start_decay(5)
        opt.set_lr(0.05)
        opt.observe(torch.tensor(1.0))
        opt.discard_observed()
    return opt


def unpickled(params, backend, path):
    opt = build(params, backend)
    step(opt, 0)
    with torch.inference_mode():
        states = copy.deepcopy(opt.__getstate__())
    states["param_groups"] = opt.param_groups
    states["state"] = {param: copy.deepcopy(state) for param, state in opt.state.items()}
    with torch.inference_mode():
        for state in states["state"].values():
            state.update({name: value.clone() for name, value in state.items()})
        opt.__setstate__(states)
    return opt


WAYS = [constructed, loaded, grown, recorded, decaying, unpickled]


@pytest.mark.parametrize("way", WAYS)
def test_steps_go_on_outside(device, backend, way, tmp_path):
    """To the bits of an optimizer that never saw that mode."""
    results = []
    for within in (True, False):
        params = params_on(device)
        with pytest.MonkeyPatch.context() as patch:
            if not within:
                patch.setattr(torch, "inference_mode", lambda mode=True: torch.autograd.set_grad_enabled(not mode))
            opt = way(params, backend, tmp_path / f"{within}.jsonl")
        for seed in (2, 3):
            step(opt, seed)
        opt.metrics()
        found = tensors_in(vars(opt))
        assert len(found) > 20 and not any(tensor.is_inference() for tensor in found)
        results.append((params, opt.read_lr(), [value for state in opt.state.values() for value in state.values()]))
        if "recorder" in vars(opt):
            opt.recorder.close()
    (ours, lrs, state), (others, other_lrs, other_state) = results
    assert lrs == other_lrs
    for a, b in zip([*ours, *state], [*others, *other_state], strict=True):
        assert_same_bits(a, b)


def test_a_step_within(device, backend):
    """Builds the table and the state there; the next one is outside, with a loss from within."""
    params = params_on(device)
    opt = build(params, backend)
    with torch.inference_mode():
        step(opt, 0)
        loss = torch.tensor(2.0, device=device)
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step(loss=loss)
    assert not any(tensor.is_inference() for tensor in tensors_in(vars(opt)))
    twins = params_on(device)
    twin = build(twins, backend)
    step(twin, 0)
    for param in twins:
        param.grad = torch.ones_like(param)
    twin.step(loss=2.0)
    for a, b in zip(params, twins, strict=True):
        assert_same_bits(a, b)


def test_grad_mode_is_left_alone(device, backend):
    """Hooks of users see it as they would with torch's AdamW."""
    params = params_on(device)
    opt, seen = build(params, backend), []
    step(opt, 0)
    opt.register_load_state_dict_post_hook(lambda _: seen.append(torch.is_grad_enabled()))
    saved = copy.deepcopy(opt.state_dict())
    for mode in (torch.no_grad(), torch.enable_grad(), torch.inference_mode()):
        with mode:
            opt.load_state_dict(saved)
    assert seen == [False, True, False]


def test_a_device_schedule_built_within(device, backend):
    (param, _) = params_on(device)
    opt = torch.optim.AdamW([param], lr=torch.tensor(0.1, device=device), fused=True)
    with torch.inference_mode():
        schedule = DeviceSchedule(opt, GreedyLR(patience=0, smooth=False), backend=backend)
        schedule.load_state_dict(schedule.state_dict())
    for loss in (3.0, 2.0):
        param.grad = torch.ones_like(param)
        opt.step()
        schedule.step(loss=loss)
    assert not any(tensor.is_inference() for tensor in tensors_in(vars(schedule)))


def test_parameters_made_within_are_refused_before_anything_is_written(device, backend):
    params = params_on(device)
    with torch.inference_mode():
        params.append(torch.nn.Parameter(torch.zeros(2, device=device), requires_grad=False))
    before = [param.detach().clone() for param in params]
    opt = FusedAdamW(params, backend=backend)
    for param in params:
        param.grad = torch.ones_like(param)
    with pytest.raises(RuntimeError, match=r"made outside of torch.inference_mode\(\), got one of shape \(2,\)"):
        opt.step()
    for param, value in zip(params, before, strict=True):
        assert_same_bits(param, value)
