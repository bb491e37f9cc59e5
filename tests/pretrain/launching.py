"""The main job under torchrun's own agent, started from this process.

The agent is that of `torchrun`, and so are the environment, the store and the restarts. What differs is that its ranks
are forked from the server of tests/support/ranks.py, which has imported torch, so that a start takes no second.
"""

import faulthandler
import importlib
import os
import signal
import sys
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from running import EXAMPLES
from striking import strike
from support import ranks
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

LIMIT = 60  # seconds for one start of a rank; then it shows where it is and dies


@dataclass(frozen=True)
class Outcome:
    """What each rank ended with, and wrote, in its last start; `starts` is how often the ranks were started."""

    codes: list
    out: list
    err: list
    starts: int


def launch(folder, *options, world=2, restarts=0, before=None, moment=None):
    """Run the main job in `folder` under the agent.

    Args:
        folder: the working directory; what the ranks print goes into files there.
        options: the command line.
        world: number of ranks.
        restarts: how often they may be started again.
        before: a function of a test module, called on each rank with its number before the job.
        moment: when to hit which rank, in its first start.

    Returns:
        Its Outcome.
    """
    ranks._server()  # with what it imports once
    told = folder / "ranks"
    told.mkdir(exist_ok=True)
    for path in told.iterdir():
        path.unlink()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=world,
        run_id=f"{folder}",
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",
        rdzv_configs={"is_host": True, "timeout": LIMIT},
        local_addr="localhost",  # else the agent looks up this machine's name
        max_restarts=restarts,
        monitor_interval=0.05,
        start_method="forkserver",
        logs_specs=DefaultLogsSpecs(log_dir=str(folder / "agent")),
    )
    with handlers_kept():
        try:
            elastic_launch(config, work)(str(folder), [*map(str, options)], before, moment)
        except ChildFailedError:
            pass  # the codes tell
    starts = 1 + max(int(path.suffix[1:]) for path in told.glob("rank0.out.*"))

    def read(what):
        paths = [told / f"rank{rank}.{what}.{starts - 1}" for rank in range(world)]
        return [path.read_text() if path.exists() else "" for path in paths]

    return Outcome([int(code) if code else None for code in read("code")], read("out"), read("err"), starts)


@contextmanager
def handlers_kept():
    """The agent leaves handlers of its own, and a variable."""
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT)
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        os.environ.pop("TORCHELASTIC_SIGNALS_TO_HANDLE", None)


def work(folder, options, before, moment):
    """What a rank does."""
    rank, start = int(os.environ["RANK"]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    os.chdir(folder)
    told = {what: Path("ranks", f"rank{rank}.{what}.{start}") for what in ("out", "err", "code")}
    sys.stdout, sys.stderr = (told[what].open("w", buffering=1) for what in ("out", "err"))
    faulthandler.dump_traceback_later(LIMIT, exit=True, file=sys.stderr)
    warnings.simplefilter("error")
    sys.path.insert(0, str(EXAMPLES))
    if before is not None:
        before(rank)
    if moment is not None and start == 0 and moment.rank == rank:
        strike(moment)
    code = importlib.import_module("pretrain").main(options)
    told["code"].write_text(str(code))
    others = [Path("ranks", f"rank{other}.code.{start}") for other in range(int(os.environ["WORLD_SIZE"]))]
    while not all(path.exists() for path in others):  # when one has ended with an error, the agent ends the rest
        time.sleep(0.01)
    sys.exit(code)
