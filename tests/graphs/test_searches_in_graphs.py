"""A captured step with a level search, with a stand-in for the graph: its replays make the whole search."""

import pytest
from support.graph_stand_in import Body, StandIn, batch, standing_in, stepped
from support.tensors import assert_same, latest, snapshot

from greedylr_fused import AdaLRS, Climb, Linear
from greedylr_fused.graphs import CapturedStep
from greedylr_fused.schedules import Backup

__all__ = ["standing_in"]
BASE = Linear(120, warmup_steps=6)
SEARCHES = {
    "climb": Climb(base=BASE, min_window=6, window=0.0),
    "adalrs": AdaLRS(base=BASE, min_window=4, window=0.0, z=0.0),
}


@pytest.mark.parametrize("name", SEARCHES)
def test_replays_are_the_steps_of_an_eager_training(standing_in, name):
    """Copies of trials included."""
    eager, ours = (Body(schedule=SEARCHES[name], lr=0.05) for _ in range(2))
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=2)
    actions = []
    for i in range(60):
        step(batch(i))
        stepped(eager, batch(i))
        actions.append(float(ours.opt._control.slot("backup")))
        assert_same(snapshot(ours.opt), snapshot(eager.opt))
    assert step.captured and {Backup.TAKE, Backup.PUT_BACK} <= {*actions}
    assert latest(ours.opt).phase == latest(eager.opt).phase == "frozen"
    assert eager.opt._engine.backup is None


def test_an_eager_step_after_the_search_lets_the_backup_go(standing_in):
    ours = Body(schedule=SEARCHES["climb"], lr=0.05)
    StandIn.optimizer = ours.opt
    step = CapturedStep(ours, ours.opt, warmup=2)
    for i in range(60):
        step(batch(i))
    step.reset()
    step(batch(60))
    assert ours.opt._engine.backup is None and ours.opt.memory().backup == 0
    step(batch(61))
    assert step.captured
