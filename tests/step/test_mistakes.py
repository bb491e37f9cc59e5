"""Mistakes that a new user makes: each message says what is expected, what was got and what to do.

docs/faq.md tells of those that come first.
"""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from support.mistakes import CLOSURE, GREEDY, OF_FAQ, OTHERS, optimizer, two_schedulers
from support.paths import ROOT
from support.tensors import assert_same, snapshot

from greedylr_fused import DeviceSchedule, FusedAdamW
from greedylr_fused.step import losses


def quoted(heading):
    """The pattern of what a heading of the FAQ quotes; "" if it quotes nothing."""
    found = re.match(r"""(["'])(.+)\1""", heading)
    return ".*".join(map(re.escape, found[2].split("..."))) if found else ""


MISTAKES = [*OF_FAQ.items(), *(("", mistake) for mistake in OTHERS)]


@pytest.mark.parametrize(("heading", "mistake"), MISTAKES, ids=[heading or made.words for heading, made in MISTAKES])
def test_a_mistake_is_answered_and_changes_nothing(heading, mistake, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    opt = mistake.prepare()
    before = snapshot(opt) if opt else {}
    answered = pytest.warns if issubclass(mistake.answer, Warning) else pytest.raises
    with answered(mistake.answer, match=f"(?s)^(?=.*{quoted(heading)}).*{mistake.words}"):
        mistake.make(opt)
    if opt and answered is pytest.raises:
        assert_same(snapshot(opt), before)


def test_the_faq_has_the_mistakes_and_no_other_quotes():
    headings = re.findall(r"^## (.+)$", (ROOT / "docs" / "faq.md").read_text(), re.M)
    assert {heading for heading in headings if quoted(heading)} <= OF_FAQ.keys() <= set(headings)


def test_a_loss_as_a_number_on_a_cpu_is_no_mistake(recwarn):
    losses.warn_of_number(torch.tensor(0.5), torch.device("cuda"))
    optimizer(schedule=GREEDY).step(loss=0.5)  # on a CPU nothing was waited for
    assert not recwarn.list


def test_two_schedulers_are_told_of_once():
    opt = two_schedulers()
    with pytest.warns(UserWarning):
        opt.step(loss=1.0)
    opt.scheduler.step()
    opt.step(loss=1.0)


def test_greedylr_stepped_at_evaluation_only():
    """What the message says to write."""
    other = optimizer(torch.optim.AdamW, lr=torch.tensor(1e-3))
    schedule = DeviceSchedule(other, GREEDY)
    for evaluation in (1.0, 2.0):
        other.step()
        other.step()
        schedule.step(loss=evaluation)
    assert schedule.metrics().step == 2


def test_some_frozen_parameters_are_usual():
    net = torch.nn.Linear(4, 2)
    net.bias.requires_grad_(False)
    opt = FusedAdamW(net.parameters(), schedule=GREEDY)
    bias = net.bias.clone()
    loss = net(torch.ones(3, 4)).square().mean()
    loss.backward()
    opt.step(loss=loss)
    assert torch.equal(net.bias, bias) and net.bias not in opt.state


def test_numbers_of_numpy_are_numbers():
    opt = optimizer(lr=np.float32(0.5), weight_decay=torch.tensor(0.0), schedule=None)
    opt.step(loss=np.float32(1.0))


def test_a_closure_may_return_anything_without_a_schedule():
    opt = optimizer()
    assert opt.step(lambda: True) is True
    assert opt.step(lambda: "done") == "done"
    assert opt.step(CLOSURE) == 1.0, "nothing is decided from it"
