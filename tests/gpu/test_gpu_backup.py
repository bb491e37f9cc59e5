"""A backup in a CUDA graph: each replay does what the slot says by then, in memory of the device or of the host."""

import pytest
import torch
from machines import WARM_UP, Training
from support.backups import NOTHING, PUT_BACK, TAKE, Trial
from support.tensors import assert_same, same_bits


@pytest.mark.parametrize("where", ["device", "host"])
@torch.no_grad()
def test_a_graph_asks_the_slot_at_each_replay(machine, where):
    training = Training(machine, dtypes=(torch.float32, torch.bfloat16))

    def steps(begin):
        with torch.enable_grad():
            for i in range(begin, begin + WARM_UP):
                training.step(i)

    steps(0)
    trial = Trial(training.opt, where)
    trial.take()  # compiles what is compiled at the first call
    backend, table = training.opt._engine.backend, trial.backup.table
    replay = training.captured(lambda: backend.backup(table))
    slot = training.opt._control.slot("backup")
    before = trial.all()
    with machine.refusing_to_wait():
        slot.fill_(TAKE)
        replay(0)
        slot.fill_(NOTHING)
    steps(WARM_UP)
    after = trial.all()
    assert not any(same_bits(after[name], before[name]) for name in before if name.startswith(("param", "step")))
    with machine.refusing_to_wait():
        replay(0)
    assert_same(trial.all(), after)
    with machine.refusing_to_wait():
        slot.fill_(PUT_BACK)
        replay(0)
        slot.fill_(NOTHING)
    assert_same(trial.all(), before)
