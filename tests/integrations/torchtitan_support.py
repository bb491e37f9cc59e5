"""torchtitan's debug model on CPUs: what it needs of a GPU has a stand-in, all else is its own."""

import contextlib
import inspect
import os
import warnings
from dataclasses import dataclass
from unittest import mock

import pytest
import torch
from torch.distributed.fsdp import FSDPModule

pytest.importorskip("torchtitan", reason="make torchtitan runs these in an environment of their own")

with warnings.catch_warnings(), mock.patch("torch._utils._get_available_device_type", lambda: "cpu"):
    warnings.simplefilter("ignore")
    import torchtitan.components.metrics as metrics
    from torchtitan.components.checkpoint import CheckpointManager
    from torchtitan.components.dataloader import BaseDataLoader
    from torchtitan.components.loss import IGNORE_INDEX, CrossEntropyLoss
    from torchtitan.components.optimizer import LRSchedulersContainer, default_adamw
    from torchtitan.components.tokenizer import BaseTokenizer
    from torchtitan.config import ParallelismConfig, TrainingConfig
    from torchtitan.distributed import utils as dist_utils
    from torchtitan.models.common.attention import ScaledDotProductAttention
    from torchtitan.models.common.config_utils import decoder_vocab_size
    from torchtitan.models.llama3 import model_registry
    from torchtitan.trainer import Trainer

    import greedylr_fused.integrations.torchtitan  # noqa: F401  (imports more of it)

TOKENS = 64


class Words(BaseDataLoader):
    """Random tokens, with another number of valid ones in each batch."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseDataLoader.Config):
        pass

    def __init__(self, config, *, dp_rank, seq_len, local_batch_size, **_):
        self.shape = (local_batch_size, seq_len + 1)
        self.rank, self.generator = f"dp_rank_{dp_rank}", torch.Generator().manual_seed(dp_rank)

    def __iter__(self):
        while True:
            tokens = torch.randint(TOKENS, self.shape, generator=self.generator)
            labels = tokens[:, 1:].clone()
            kept = int(torch.randint(1, labels.shape[1], (), generator=self.generator))
            labels[0, kept:] = IGNORE_INDEX
            yield {"input": tokens[:, :-1]}, labels

    def state_dict(self):
        return {self.rank: self.generator.get_state()}

    def load_state_dict(self, state_dict):
        self.generator.set_state(state_dict[self.rank])


class NoTokenizer(BaseTokenizer):
    """The data are tokens already."""

    @dataclass(kw_only=True, slots=True)
    class Config(BaseTokenizer.Config):
        pass

    def __init__(self, config, **_):
        super().__init__()

    def encode(self, *_, **__):
        return []

    def decode(self, *_, **__):
        return ""

    def get_vocab_size(self):
        return TOKENS


class Memory:
    """torch.cpu has no statistics of memory."""

    device_name = "cpu"

    def get_peak_stats(self):
        return metrics.DeviceMemStats(*[0] * len(metrics.DeviceMemStats._fields))

    def reset_peak_stats(self):
        pass


def model():
    """torchtitan's debug model, of two layers, with the attention that CPUs have."""
    spec = model_registry("debugmodel", attn_backend="flex")
    del spec.model.layers[2:]
    for layer in spec.model.layers:
        layer.attention.inner_attention = ScaledDotProductAttention.Config()
    parallelized = spec.parallelize_fn

    def summed(part, **options):
        """gloo cannot multiply as it adds."""
        done = parallelized(part, **options)
        for module in done.modules():
            if isinstance(module, FSDPModule):
                module.set_force_sum_reduction_for_comms(True)
        return done

    spec.parallelize_fn = summed
    return spec


def config(folder, *, steps, lr=2e-2, save_every=None, micro_batches=2, ranks=2, **parallelism):
    """A training config as config registries return them."""
    spec = model()
    degree = ranks // parallelism.get("pipeline_parallel_degree", 1)
    return Trainer.Config(
        loss=CrossEntropyLoss.Config(global_vocab_size=decoder_vocab_size(spec)),
        model_spec=spec,
        optimizer=default_adamw(lr=lr),
        lr_scheduler=LRSchedulersContainer.Config(),
        training=TrainingConfig(
            local_batch_size=2,
            global_batch_size=2 * micro_batches * degree,
            seq_len=8,
            steps=steps,
            disable_cuda_graphs=True,
            mixed_precision_param="float32",
        ),
        dataloader=Words.Config(),
        tokenizer=NoTokenizer.Config(),
        metrics=metrics.MetricsProcessor.Config(log_freq=1),
        parallelism=ParallelismConfig(spmd_backend="partial_dtensor", **parallelism),
        checkpoint=CheckpointManager.Config(
            enable=save_every is not None, interval=save_every or 1, last_save_model_only=False
        ),
        dump_folder=str(folder),
    )


@contextlib.contextmanager
def trainer(rank, training):
    """What the config builds, with a list `logged` of what it logs at each step."""
    os.environ |= {"LOCAL_RANK": str(rank), "RANK": str(rank)}
    warnings.filterwarnings("ignore", module="torch")  # what PyTorch tells torchtitan, in this process of a rank
    warnings.filterwarnings("error", ".*FusedAdamW")
    with mock.patch.object(metrics, "build_device_memory_monitor", Memory):
        made = training.build()
    if training.parallelism.pipeline_parallel_degree > 1:
        made.pp_schedule.step = step_of(made.pp_schedule)
    made.logged = []

    def log(step, loss, largest, norm, extra_metrics):
        made.logged.append({"step": step, "loss": loss, "norm": norm} | extra_metrics)

    made.metrics_processor.log = log
    # A barrier, before groups of NCCL get a shorter timeout, names devices by number; and rank 0 sleeps at the end.
    with mock.patch.object(dist_utils, "set_pg_timeouts"), mock.patch("time.sleep"):
        try:
            yield made
        finally:
            made.close()


def step_of(schedule):
    """The step of a pipeline over lists of micro-batches, as torchtitan calls it; PyTorch 2.13 splits whole batches."""
    if "arg_mbs" in inspect.signature(schedule.step).parameters:
        return schedule.step
    stages = getattr(schedule, "_stages", None) or [schedule._stage]

    def step(*, loss_kwargs, **lists):
        for stage in stages:
            stage.has_backward = True
            stage.clear_runtime_states()
        schedule._step_microbatches(loss_kwargs=loss_kwargs, **lists)

    return step


def weights(made):
    """All parameters of a trainer, whole."""
    return {
        name: getattr(param.detach(), "full_tensor", param.detach)().clone()
        for part in made.model_parts
        for name, param in part.named_parameters()
    }
