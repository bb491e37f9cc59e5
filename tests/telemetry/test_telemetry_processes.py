"""A recorder at the end of its process, and in one that is forked off."""

import os
import subprocess
import sys

import pytest
from support.telemetry import numbers

ENDS = """
import sys, torch
from greedylr_fused import FusedAdamW
from greedylr_fused.telemetry import Recorder

def log(metrics, step):
    raise ValueError("too late")

params = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
opts = [FusedAdamW([param]) for param in params]
kept = [Recorder(opts[0], sys.argv[1]), Recorder(opts[1], log), Recorder(opts[1], sys.argv[2])]
for param, opt in zip(params, opts):
    param.grad = torch.ones(2)
    opt.step(loss=1.0)
"""


def test_at_the_end_of_the_process(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    done = subprocess.run([sys.executable, "-c", ENDS, *paths], capture_output=True, text=True, timeout=100, check=True)
    assert [numbers(path) for path in paths] == [[1], [1]]
    assert "too late" in done.stderr and "Traceback" not in done.stderr


FORKS = """
import os, sys, torch
from greedylr_fused import FusedAdamW
from greedylr_fused.telemetry import Recorder

torch.set_num_threads(1)
param = torch.nn.Parameter(torch.ones(2))
param.grad = torch.ones(2)
opt = FusedAdamW([param])
logged = []
recorder = Recorder(opt, sys.argv[1], lambda metrics, step: logged.append(step))
opt.step(loss=1.0)
opt.step(loss=1.0)
child = os.fork()
if child == 0:
    opt.step(loss=2.0)
    recorder.drain(wait=True)
    recorder.close()
    assert logged == [] and opt._listeners == []
    mine = Recorder(opt, sys.argv[2])
    opt.step(loss=3.0)
    sys.exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
opt.step(loss=1.0)
recorder.close()
assert logged == [1, 2, 3], logged
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes cannot fork here")
def test_a_process_that_is_forked_off_records_nothing(tmp_path):
    """An end by sys.exit() there once wrote what the parent had not yet, and the parent wrote it again."""
    ours, theirs = tmp_path / "run.jsonl", tmp_path / "child.jsonl"
    subprocess.run([sys.executable, "-c", FORKS, ours, theirs], check=True, timeout=120)
    assert numbers(ours) == [1, 2, 3]
    assert numbers(theirs) == [4]
