"""The benchmark over several ranks, small."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from support.ranks import run

from benchmarks import report
from benchmarks.host import ranks as benchmark
from benchmarks.options import Asked

CONFIG = {"world": 2, "tensors": 3, "rounds": 4}


def one_rank(rank, folder):
    dist.destroy_process_group()  # the benchmark makes its own, and leaves none
    asked = Asked(torch.device("cpu"), config=CONFIG, out=Path(folder))
    benchmark.on_rank(rank, f"{folder}/meeting", asked)
    dist.init_process_group("gloo", store=dist.FileStore(f"{folder}/after", 2), rank=rank, world_size=2)


def test_a_record_per_contender(tmp_path):
    run(one_rank, 2, str(tmp_path))
    found = report.load(tmp_path / "ranks.json")
    records = {record["contender"]: record for record in found["records"]}
    names = [contender.name for contender in benchmark.contenders(torch.device("cpu"))]
    assert list(records) == [benchmark.ALL_REDUCE, *names]
    assert all(record["us_per_step"]["count"] == 4 for record in records.values())
    assert records["torch-fused+clip"]["ratio"]["median"] == 1.0
    clipped = [record for record in records.values() if "+clip" in record["contender"]]
    assert {record["base"] for record in clipped} == {"torch-fused+clip"}


@pytest.mark.parametrize("name", ["world", "tensors", "rounds"])
def test_numbers_below_1_are_refused(name):
    with pytest.raises(SystemExit, match=f"--{name}: expected a number above 0, got 0"):
        benchmark.main([f"--{name}", "0"])
