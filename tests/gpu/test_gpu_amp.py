"""GradScaler around a whole loop: unscaling, skipping and growth, as torch's users write it."""

import math

import pytest
import torch
from machines import Training
from support.tensors import assert_same, snapshot, stepped

#: The gradients of these steps are not finite.
BAD = {4: math.inf, 5: math.nan, 9: -math.inf}
STEPS = 14


def loop(machine, *, unscale, clip):
    """Yields after each step: step, whether it was skipped, the scale before it, the optimizer before and after."""
    training = Training(machine, sizes=(4096, 129, 1), max_grad_norm=clip)
    opt = training.opt
    scaler = torch.amp.GradScaler(machine.device.type, init_scale=1024.0, growth_interval=3)
    for i in range(STEPS):
        opt.zero_grad()
        training.feed(i)
        loss = training.loss()
        scaler.scale(loss).backward()
        if i in BAD:
            training.params[1].grad[7] = BAD[i]
        if unscale:
            scaler.unscale_(opt)
        yield i, scaler, opt, loss.detach()
        scaler.update()


@pytest.mark.parametrize("unscale", [False, True], ids=["scaled", "unscaled_first"])
def test_the_loop_skips_and_updates_as_torchs(machine, unscale):
    scales, skipped = [], 0
    for i, scaler, opt, loss in loop(machine, unscale=unscale, clip=None):
        scale = scaler.get_scale()
        scales.append(scale)
        if i in BAD:
            before = snapshot(opt, control=False)
            lr = opt.read_lr()
            scaler.step(opt, loss=loss)
            skipped += 1
            assert_same(snapshot(opt, control=False), before)
            assert opt.read_lr() == lr
        else:
            factor = 1.0 if unscale else 1 / scale
            stepped(
                opt,
                step=lambda scaler=scaler, opt=opt, loss=loss: scaler.step(opt, loss=loss),
                multiplier=factor,
                prepare=lambda grad, factor=factor: grad * factor,
            )
        metrics = machine.metrics(opt)
        assert (metrics.step, metrics.skipped) == (i + 1 - skipped, skipped)
    # Three good steps double the scale, a bad one halves it.
    assert scales == [1024, 1024, 1024, 2048, 2048, 1024, 512, 512, 512, 1024, 512, 512, 512, 1024]


def test_clipping_sees_the_unscaled_norm(machine):
    """The same run with the scale folded in and with gradients unscaled before."""
    runs = [[], []]
    for unscale, run in zip((False, True), runs, strict=True):
        for _, scaler, opt, loss in loop(machine, unscale=unscale, clip=0.001):
            scaler.step(opt, loss=loss)
            run.append((machine.metrics(opt), opt.read_lr()))
    for (a, lr_a), (b, lr_b) in zip(*runs, strict=True):
        assert (a.step, a.skipped, lr_a) == (b.step, b.skipped, lr_b)
        # A scale that is a power of two changes no bit of a normal number.
        assert a.grad_norm == b.grad_norm or (math.isnan(a.grad_norm) and math.isnan(b.grad_norm))
        assert a.loss == b.loss
