"""What a recorder tells of a level search: each trial, what was put back, and the level."""

import json

import pytest
from support.searches import golden, take
from support.tensors import latest
from support.trials import LRS, Training, pair

from greedylr_fused.commands.plot import _summary
from greedylr_fused.schedules import Backup, SearchSpec
from greedylr_fused.step.mirror import Metrics
from greedylr_fused.telemetry import Recorder, recorded_run


@pytest.mark.parametrize("name", ["climb, a skipped step", "climb, stops", "adalrs, small"])
def test_each_line_has_what_the_specification_says(tmp_path, device, name):
    case = golden()[name]
    ours, _ = pair(case["config"], "cpu", device)
    spec, wanted = SearchSpec(case["config"]), []
    with Recorder(ours.opt, tmp_path / "run.jsonl"):
        for loss in case["losses"][:100]:
            ours.step(loss)
            take(spec, loss)
            put_back = spec.backup is Backup.PUT_BACK
            wanted.append((spec.phase.name.lower(), spec.level, spec.event.name.lower(), put_back))
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    found = [(row["phase"], row["level"], row.get("event", "none"), row.get("rolled_back", False)) for row in rows]
    assert found == wanted
    assert sum(put_back for *_, put_back in wanted) >= 1
    run = recorded_run.read(tmp_path / "run.jsonl")["run"]
    assert " try" in _summary("run", run) or " tries" in _summary("run", run)


def test_loggers_get_level_and_phase(device):
    case = golden()["climb, stops"]
    ours, by_hand = pair(case["config"], "cpu", device)
    for loss in case["losses"][:14]:
        ours.step(loss)
    found = latest(ours.opt)
    assert (found.phase, found.level) == ("trial", case["config"].start)
    assert found.scalars("opt/")["opt/level"] == case["config"].start and found.scalars()["phase"] == 1.0
    assert found.lr == pytest.approx(ours.opt.read_lr()) and found.lr[0] < LRS[0]
    by_hand.step(1.0)
    plain: Metrics = latest(by_hand.opt)
    assert plain.phase is None and not {"level", "phase"} & plain.scalars().keys()
    assert isinstance(by_hand, Training)
