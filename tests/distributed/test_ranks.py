"""The harness of the multi-process tests: what it must do when a rank does not."""

import os
import signal
import time
import warnings

import pytest
import torch
import torch.distributed as dist
from support.ranks import Ranks, run

FOREVER = 1000  # seconds; the tests below end long before


def gone(path):
    """Whether the process whose id lies there has ended."""
    try:
        os.kill(int(path.read_text()), 0)
    except ProcessLookupError:
        return True
    return False


def add_up(rank, number):
    total = torch.full((2,), float(rank + number))
    dist.all_reduce(total)
    return {"rank": rank, "total": total, "world": dist.get_world_size(), "threads": torch.get_num_threads()}


@pytest.mark.parametrize("world", [1, 2, 3])
def test_results_come_in_the_order_of_the_ranks(world):
    found = run(add_up, world, 5)
    assert [one["rank"] for one in found] == list(range(world))
    want = torch.full((2,), float(sum(range(5, 5 + world))))
    for one in found:
        assert torch.equal(one["total"], want) and one["world"] == world and one["threads"] == 1


def fail(rank, folder):
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 0:
        dist.barrier()  # which rank 2 never enters
        return time.sleep(FOREVER)
    if rank == 1:
        raise ValueError("said by rank one")
    raise KeyError("said by rank two")


def test_every_failing_rank_is_reported_and_the_others_are_killed(tmp_path):
    with pytest.raises(AssertionError) as caught:
        run(fail, 3, tmp_path)
    text = str(caught.value)
    assert "rank 1 of 3: Traceback" in text and "ValueError: said by rank one" in text
    assert "rank 2 of 3: Traceback" in text and "KeyError: 'said by rank two'" in text
    assert "rank 0" not in text, "it was killed, and has not itself failed or run out of time"
    assert all(gone(tmp_path / str(rank)) for rank in range(3))


def hang(rank, folder):
    (folder / str(rank)).write_text(str(os.getpid()))
    if rank == 1:
        time.sleep(FOREVER)
    return rank


def test_a_rank_that_hangs_ends_with_the_time(tmp_path):
    with pytest.raises(AssertionError, match="rank 1 of 2: did not answer in time") as caught:
        run(hang, 2, tmp_path, timeout=5.0)
    assert 'test_ranks.py", line' in str(caught.value) and "in hang" in str(caught.value), "it says where"
    assert "rank 0" not in str(caught.value)
    assert gone(tmp_path / "0") and gone(tmp_path / "1")


def kill(rank):
    if rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    dist.barrier()


def test_a_rank_that_is_killed_is_reported():
    with pytest.raises(AssertionError, match=f"rank 1 of 2: ended without an answer, exit code -{signal.SIGKILL}"):
        run(kill, 2)


def warn(rank):
    if rank == 1:
        warnings.warn("said by a worker", stacklevel=1)
    return rank


def test_a_warning_in_a_worker_is_an_error():
    with pytest.raises(AssertionError, match="rank 1 of 2: Traceback[^$]*UserWarning: said by a worker"):
        run(warn, 2)


@pytest.mark.filterwarnings("ignore:said by a worker")
def test_a_worker_ignores_the_warnings_that_its_test_does():
    assert run(warn, 2) == [0, 1]


def say(rank, path, number):
    (path / f"{rank} {number}").write_text(str(os.getpid()))
    total = torch.tensor([number])
    dist.all_reduce(total)
    assert number != 3, "said of the third"
    return total.item(), os.getpid()


def test_ranks_stay_from_case_to_case_until_one_fails(tmp_path):
    with Ranks(2) as ranks:
        (first, mine), (other_first, theirs) = ranks(say, tmp_path, 1)
        assert ranks(say, tmp_path, 2) == [(4, mine), (4, theirs)] and first == other_first == 2
        with pytest.raises(AssertionError, match=r"(?s)rank 0 of 2: Traceback.*number = 3.*said of the third"):
            ranks(say, tmp_path, 3)
        assert gone(tmp_path / "0 1") and gone(tmp_path / "1 1")
        (total, new), (_, other_new) = ranks(say, tmp_path, 4)
        assert total == 8 and len({mine, theirs, new, other_new}) == 4
    assert gone(tmp_path / "0 4") and gone(tmp_path / "1 4")


def unpicklable(rank):
    return lambda: rank


def test_a_result_that_cannot_be_sent_is_an_error():
    with pytest.raises(AssertionError, match="rank 0 of 1: Traceback"):
        run(unpicklable, 1)
