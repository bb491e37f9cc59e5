"""Damaged states of 8 bits and remainders, and what does not fit: an error that names the key, and nothing changed."""

import copy
import math

import pytest
import torch
from support.stored import I8, build, params_of, train, values
from support.tensors import assert_same, snapshot

from greedylr_fused import FusedAdamW

CPU = torch.device("cpu")
Q, SCALE, REST = "exp_avg_q", "exp_avg_sq_scale", "remainder"


def first(value, at=0):
    """That value in one place of what was there."""

    def harm(tensor):
        tensor.view(-1)[at] = value

    return harm


#: name: key, what becomes of it (another tensor, or a change in place), what is expected and what was got.
DAMAGE = {
    "codes as floats": (
        Q,
        lambda t: t.float(),
        TypeError,
        r"dense Tensor of torch.int8 .*got a Tensor of torch.float32",
    ),
    "codes of the other": (Q, lambda t: t.to(torch.uint8), TypeError, r"torch.int8 .*got a Tensor of torch.uint8"),
    "codes of a part": (Q, lambda t: t[:32], ValueError, r"expected shape \(64, 64\) .*got \(32, 64\)"),
    "codes in a list": (Q, lambda t: t.tolist(), TypeError, "expected a tensor"),
    "scales of a part": (SCALE, lambda t: t[:32], ValueError, r"expected shape \(64, 1\) .*got \(32, 1\)"),
    "scales in a row": (SCALE, lambda t: t.reshape(-1), ValueError, r"expected shape \(64, 1\) .*got \(64,\)"),
    "scales in 16 bits": (SCALE, lambda t: t.bfloat16(), TypeError, r"torch.float32 .*got a Tensor of torch.bfloat16"),
    "a negative scale": (SCALE, first(-1e-3, 9), ValueError, r"expected finite numbers >= 0, got -0.001"),
    "an infinite scale": (SCALE, first(math.inf, 63), ValueError, "expected finite numbers >= 0, got inf"),
    "a scale that is none": (SCALE, first(math.nan), ValueError, "expected finite numbers >= 0, got nan"),
    "a remainder as floats": (
        REST,
        lambda t: t[..., 0].float(),
        TypeError,
        r"torch.int16 or torch.int8 .*torch.float32",
    ),
    "a remainder of a part": (REST, lambda t: t[:32], ValueError, r"expected shape \(64, 64, 2\)"),
    "one of two bytes": (REST, lambda t: t[..., 0], ValueError, r"expected shape \(64, 64, 2\) .*got \(64, 64\)"),
}


@pytest.fixture
def twins():
    """One that is to refuse, and one that is left alone."""
    found = [build("auto", CPU, "codes+16") for _ in range(2)]
    for opt in found:
        train(opt, range(2))
    return found


def refused(twins, saved, error, match):
    opt, twin = twins
    table = opt._engine.table
    with pytest.raises(error, match=match) as caught:
        opt.load_state_dict(saved)
    assert len(str(caught.value).split()) <= 40
    assert opt._engine.table is table
    assert opt.param_groups[0]["amsgrad"] is False
    assert_same(snapshot(opt), snapshot(twin))
    for one in twins:
        train(one, [2])
    assert_same(snapshot(opt), snapshot(twin))


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_state_is_refused_by_its_key(twins, name):
    key, harm, error, match = DAMAGE[name]
    saved = copy.deepcopy(twins[0].state_dict())
    state = saved["state"][0]
    changed = harm(state[key])
    if changed is not None:
        state[key] = changed
    refused(twins, saved, error, rf'checkpoint: state\[0\]\["{key}"\]: .*{match}')


@pytest.mark.parametrize("key", ["exp_avg_q", "exp_avg_sq_q", "exp_avg_scale", "exp_avg_sq_scale", "step"])
def test_a_state_that_lacks_one_is_refused(twins, key):
    saved = copy.deepcopy(twins[0].state_dict())
    del saved["state"][0][key]
    refused(twins, saved, ValueError, rf'checkpoint: state\[0\]: .*without "{key}"')


def test_codes_of_a_parameter_that_is_too_small_are_refused(twins):
    saved = copy.deepcopy(twins[0].state_dict())
    param = params_of(twins[0])[3]
    saved["state"][3]["exp_avg_q"] = torch.zeros_like(param, dtype=I8)
    refused(twins, saved, ValueError, r'state\[3\]: .*without "exp_avg_sq_q"')
    codes = {"exp_avg_sq_q": torch.zeros_like(param, dtype=torch.uint8)}
    scales = {f"{name}_scale": torch.zeros(9, 1) for name in ("exp_avg", "exp_avg_sq")}
    saved["state"][3] |= codes | scales
    refused(twins, saved, ValueError, r'state\[3\]\["exp_avg_q"\]: expected floats in a tensor of shape \(9,\)')


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0, 1e39])
def test_moments_that_have_no_codes_are_refused(twins, value):
    saved = copy.deepcopy(build_floats())
    first(value, 77)(saved["state"][0]["exp_avg_sq"])
    refused(
        twins,
        saved,
        ValueError,
        r'state\[0\]\["exp_avg"\].*expected finite float32 numbers, the second >= 0.* got a NaN',
    )


def build_floats(**options):
    """A state_dict of torch's, of float64 numbers."""
    params = [torch.nn.Parameter(value.double()) for value in values()]
    opt = torch.optim.AdamW([{"params": params[:1]}, {"params": params[1:]}], **options)
    for param in params:
        param.grad = torch.ones_like(param)
    opt.step()
    return opt.state_dict()


def test_the_largest_moments_of_amsgrad_are_refused(twins):
    saved = build_floats(amsgrad=True)
    refused(twins, saved, ValueError, r"checkpoint: param_groups\[0\]: amsgrad: expected False .*float32")
    for group in saved["param_groups"]:
        group["amsgrad"] = False
    refused(twins, saved, ValueError, r'checkpoint: state\[0\]\["max_exp_avg_sq"\]: expected no such moment')


@pytest.mark.parametrize("name, value, match", [
    ("state_version", 2, "expected at most 1, got 2; update greedylr_fused"),
    ("state_version", "new", "expected at most 1, got 'new'"),
    ("state_group_size", 128, "expected 64, got 128"),
])  # fmt: skip
def test_another_format_is_refused(twins, name, value, match):
    saved = copy.deepcopy(twins[0].state_dict())
    saved["param_groups"][1][name] = value
    refused(twins, saved, ValueError, rf'checkpoint: param_groups\[1\]\["{name}"\]: {match}')


def test_masters_that_are_dropped_are_told_of():
    opt, other = build("auto", CPU, "codes+16"), build("auto", CPU, "codes")
    train(opt, [1])
    with pytest.warns(UserWarning, match="had float32 masters, .* is dropped; .*master_weights"):
        other.load_state_dict(opt.state_dict())
    assert not any("remainder" in own for own in other.state.values())
    assert other.param_groups[0]["master_weights"] is None


def test_an_optimizer_keeps_its_own_storage():
    """Of groups from anywhere."""
    for storage in ("codes+8", "halves"):
        opt, torchs = build("auto", CPU, storage), build("auto", CPU, "floats+16")
        train(torchs, [1])
        wanted = {name: opt.param_groups[0].get(name) for name in ("state_dtype", "master_weights", "state_version")}
        for saved in (torchs.state_dict(), torchs.export_state_dict()):
            if storage == "halves" and "remainder" in saved["state"][0]:
                with pytest.warns(UserWarning, match="is dropped"):
                    opt.load_state_dict(saved)
            else:
                opt.load_state_dict(saved)
            assert {name: opt.param_groups[0].get(name) for name in wanted} == wanted
            assert ("state_version" in opt.param_groups[0]) == (storage == "codes+8")


WEIGHTS = {
    "a tensor": (lambda w: w[0], "expected a mapping or an iterable of tensors, got a Tensor"),
    "one less": (lambda w: list(w.values())[1:], "expected the 4 parameters .*, got 3 tensors"),
    "names": (lambda w: {f"p{i}": v for i, v in w.items()}, r"expected the keys .*\[0, 1, 2\].*4 missing.*named_param"),
    "one more": (lambda w: w | {9: w[0]}, r"expected the keys .* 0 missing: \[\], and 1 unknown: \[9\]"),
    "a shape": (lambda w: w | {1: w[0]}, r"1: expected shape \(5, 4, 256\) like its parameter, got \(64, 64\)"),
    "integers": (lambda w: w | {3: w[3].int()}, r"3: expected floats for a torch.bfloat16 parameter, got torch.int32"),
    "no memory": (lambda w: w | {3: w[3].to("meta")}, "3: expected a dense tensor with memory"),
    "numbers": (lambda w: [1.0] * 4, "0: expected a dense tensor with memory, got float"),
}


@pytest.mark.parametrize("name", WEIGHTS)
def test_masters_that_do_not_fit_are_refused(twins, name):
    opt, twin = twins
    change, match = WEIGHTS[name]
    with pytest.raises((TypeError, ValueError), match=f"load_master_weights: {match}"):
        opt.load_master_weights(change({key: value + 1 for key, value in opt.master_weights().items()}))
    assert_same(snapshot(opt), snapshot(twin))


def test_masters_that_nothing_keeps_are_refused():
    opt = build("auto", CPU, "halves")
    with pytest.raises(RuntimeError, match=r'keeps masters of its 4 16-bit.*None; .*master_weights="int16"'):
        opt.load_master_weights(values())
    assert not opt.state


def test_storage_that_a_later_group_cannot_have_is_refused():
    opt = build("auto", CPU, "codes")
    groups = len(opt.param_groups)
    for option in ({"amsgrad": True}, {"master_weights": "int4"}, {"state_dtype": torch.int16}):
        with pytest.raises(ValueError, match=next(iter(option))):
            opt.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], **option})
    assert len(opt.param_groups) == groups
    half = torch.nn.Parameter(torch.ones(64, 64, dtype=torch.float16))
    with pytest.raises(TypeError, match="convert it to bfloat16"):
        FusedAdamW([half], master_weights="int16")
