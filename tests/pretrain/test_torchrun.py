"""The command of the README, whole: torchrun in a process of its own, one of its ranks killed from outside."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from launching import launch
from running import EXAMPLES, assert_same_run, lines, write_text

STEPS = 40
OPTIONS = [
    "--size",
    "micro",
    "--threads",
    "1",
    "--data",
    "text.txt",
    "--steps",
    STEPS,
    "--save-every",
    2,
    "--out",
    "run",
]
LIMIT = 100


def ranks_of(torchrun):
    """Process ids, none while the ranks are not there."""
    path = Path(f"/proc/{torchrun.pid}/task/{torchrun.pid}/children")
    return [int(pid) for pid in path.read_text().split()]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="finds the ranks in Linux's /proc")
def test_torchrun_starts_a_killed_job_again_and_it_goes_on(tmp_path):
    straight, killed = tmp_path / "straight", tmp_path / "killed"
    for folder in (straight, killed):
        folder.mkdir()
        write_text(folder)
    assert launch(straight, "--fsdp", *OPTIONS).codes == [0, 0]

    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--max-restarts", "1"]
    command += ["--local-addr", "localhost", "--monitor-interval", "0.05", EXAMPLES / "pretrain.py", "--fsdp", *OPTIONS]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    output = (tmp_path / "output").open("w+")
    torchrun = subprocess.Popen(
        [*map(str, command)], cwd=killed, env=environment, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        deadline = time.monotonic() + LIMIT
        while not (killed / "run" / "checkpoint.pt").exists() and time.monotonic() < deadline:
            assert torchrun.poll() is None, (tmp_path / "output").read_text()
            time.sleep(0.01)
        os.kill(ranks_of(torchrun)[-1], signal.SIGKILL)
        assert torchrun.wait(deadline - time.monotonic()) == 0, (tmp_path / "output").read_text()
    finally:
        for pid in ranks_of(torchrun) if torchrun.poll() is None else ():
            os.kill(pid, signal.SIGKILL)
        torchrun.kill()
        torchrun.wait()
        output.close()
    said = (tmp_path / "output").read_text()
    assert said.count("micro: 26,784 parameters") == 2 and said.count("written to run/") == 1, said
    assert_same_run(straight / "run", killed / "run")
    assert [row["step"] for row in lines(killed / "run") if "loss" in row] == list(range(1, STEPS + 1))


LEAVES = """
import atexit, sys
sys.path.insert(0, sys.argv[1])
from engine import leave
atexit.register(print, "the interpreter came to its end")
print("done")
leave(3)
"""


def test_a_rank_leaves_before_its_interpreter_ends():
    """Gloo's threads would abort some of them there, once all is written."""
    environment = os.environ | dict.fromkeys(("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR"), "0")
    command = [sys.executable, "-c", LEAVES, EXAMPLES]
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, timeout=LIMIT)
    assert done.returncode == 3 and done.stdout == "done\n"
