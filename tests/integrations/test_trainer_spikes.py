"""SkipSpikes in the Trainer of transformers, which gives the losses, shows the norm, and counts a skipped step."""

import pytest
from support.tensors import latest
from trainer_support import inner, logged, trainer_of

from greedylr_fused import SkipSpikes
from greedylr_fused.integrations.transformers import use_fused_adamw

CONFIG = SkipSpikes(rolling_interval_length=4, minimum=2, sigma_factor=0.5)


@pytest.mark.parametrize("limit", [0, 1.0])
def test_a_skipped_step_is_a_step_of_the_trainer(tmp_path, limit):
    trainer, record = trainer_of("net", tmp_path, max_grad_norm=limit)
    use_fused_adamw(trainer, schedule=None, skip_spikes=CONFIG)
    trainer.train()
    found = latest(inner(trainer.optimizer))
    assert found.skipped == found.skipped_spikes > 0 and found.step > 0
    assert found.step + found.skipped == trainer.state.global_step == len(record.norms)
    assert logged(trainer, "grad_norm") == pytest.approx(record.norms)
