"""Two ranks under Lightning's launcher, in `pytorch_lightning`: a script that forks them, and the test that runs it.

A process of its own is forked, since that of the tests may have threads by now; it imports Lightning once for both.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
PARTS, STEPS, WORLD = 3, 6, 2
SECONDS = 100


@pytest.mark.slow
def test_both_ranks_follow_the_mean_of_their_losses(tmp_path):
    from lightning_support import greedy

    path = os.pathsep.join([str(HERE), str(HERE.parent), str(HERE.parent.parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        output, _ = process.communicate(timeout=SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError):  # as it is when all have ended
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert process.returncode == 0, output
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in range(WORLD)]
    both = zip(*(rank["sums"] for rank in ranks), strict=True)
    losses = [sum(total for total, _ in pair) / sum(n for _, n in pair) for pair in both]
    assert ranks[0]["sums"] != ranks[1]["sums"] and len(losses) == STEPS
    assert ranks[0]["lrs"] == ranks[1]["lrs"] == greedy(losses)
    assert len(set(ranks[0]["lrs"])) > 2
    assert ranks[0]["weights"] == ranks[1]["weights"]


def main(folder):
    """Train on two ranks, each of which writes what it saw to the folder."""
    import pytorch_lightning

    from greedylr_fused.integrations.lightning import ObserveLoss

    assert ObserveLoss.__bases__ == (pytorch_lightning.Callback,)
    from lightning_support import Batches, Recorder, trainer

    class Net(Recorder, pytorch_lightning.LightningModule):
        def train_dataloader(self):
            return Batches(seed=self.global_rank)

        def on_fit_end(self):
            self.trainer.optimizers[0].check_ranks_agree()
            weights = [param.tolist() for param in self.parameters()]
            told = {"sums": self.sums, "lrs": self.lrs, "weights": weights}
            (Path(folder) / f"rank{self.global_rank}.json").write_text(json.dumps(told))

    options = dict(strategy="ddp_fork", devices=WORLD, max_epochs=2, accumulate_grad_batches=PARTS)
    trainer(folder, ObserveLoss(), of=pytorch_lightning, **options).fit(Net(max_grad_norm=1.0))


if __name__ == "__main__":
    main(sys.argv[1])
