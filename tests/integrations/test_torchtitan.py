"""The containers for torchtitan in one process: its checkpoints, metrics, configs, and what is refused."""

import copy
import dataclasses
import json
import sys
import types
import warnings

import pytest
import torch

pytest.importorskip("torchtitan", reason="make torchtitan runs these in an environment of their own")

import torchtitan_support as support  # noqa: E402
from torchtitan.components.loss import IGNORE_INDEX  # noqa: E402
from torchtitan.components.optimizer import LRSchedulersContainer, OptimizersContainer, ParamGroupConfig  # noqa: E402
from torchtitan.config import ConfigManager  # noqa: E402
from torchtitan.trainer import Trainer  # noqa: E402

from greedylr_fused import Cosine, FusedAdamW, GreedyLR  # noqa: E402
from greedylr_fused.integrations import torchtitan as ours  # noqa: E402
from greedylr_fused.integrations.torchtitan_optimizers import FoldedLimit, FusedOptimizersContainer  # noqa: E402
from greedylr_fused.integrations.torchtitan_rates import ShownLRsContainer  # noqa: E402

GREEDY = GreedyLR(patience=0, factor=0.5, window_size=2)


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))


def group(pattern=".*", name="FusedAdamW", **options):
    return ParamGroupConfig(pattern=pattern, optimizer_name=name, optimizer_kwargs={"lr": 1e-2} | options)


def container(*parts, groups=None, kind=FusedOptimizersContainer, implementation="fused", **options):
    by_name = {"FusedAdamW": options} if options else {}
    config = kind.Config(
        param_groups=groups or [group()], optimizer_factory_kwargs_by_name=by_name, implementation=implementation
    )
    return config.build(model_parts=list(parts))


def trained(parts, made, steps):
    for seed in steps:
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(seed))
        loss = sum(part(x).square().mean() for part in parts)
        loss.backward()
        if isinstance(made, FusedOptimizersContainer):
            made.observe(loss, weight=16)
        made.step()
        made.zero_grad()


def same(one, other):
    """Whether two models have the same bits."""
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


def test_a_flat_checkpoint_goes_on_with_the_same_bits():
    first, second = net(), net()
    made = container(first, groups=[group("bias$", weight_decay=0.0, lr=3e-3), group()], schedule=GREEDY)
    trained([first], made, range(5))
    saved = made.state_dict()
    second.load_state_dict(first.state_dict())
    again = container(second, groups=[group("bias$", weight_decay=0.0, lr=3e-3), group()], schedule=GREEDY)
    again.load_state_dict(dict(saved))
    trained([first], made, range(5, 9))
    trained([second], again, range(5, 9))
    assert same(first, second) and made.fused.read_lr() == again.fused.read_lr() != [3e-3, 1e-2]
    assert made.fused.metrics() == again.fused.metrics()


def test_what_all_groups_share_is_in_a_checkpoint_once():
    """It is a text, so that distributed checkpointing writes one entry for it and one for each parameter."""
    model = net()
    made = container(model, schedule=GREEDY)
    trained([model], made, range(3))
    saved = made.state_dict()
    assert {type(value) for value in saved.values()} <= {torch.Tensor, str, float, int, bool, tuple, type(None)}
    assert json.loads(saved["greedylr_fused.control"])["step"] == 3.0
    own = [json.loads(saved[f"param_groups.{name}.control"]) for name, _ in model.named_parameters()]
    assert own == [{"lr": 0.02, "initial_lr": 0.01, "level": 0.02}] * 4


@pytest.mark.parametrize("source", [OptimizersContainer, FusedOptimizersContainer])
def test_without_a_schedule_checkpoints_are_torchtitans(source):
    """Flat states of its AdamW load into ours, and back; both go on alike, but for rounding."""
    first, second = net(), net()
    target = FusedOptimizersContainer if source is OptimizersContainer else OptimizersContainer
    names = {OptimizersContainer: "AdamW", FusedOptimizersContainer: "FusedAdamW"}
    made = container(first, groups=[group(name=names[source])], kind=source)
    trained([first], made, range(4))
    second.load_state_dict(first.state_dict())
    other = container(second, groups=[group(name=names[target])], kind=target)
    other.load_state_dict(copy.deepcopy(made.state_dict()))  # torch's AdamW trains the tensors that it loads
    assert int(next(iter(other.optimizers[0].state.values()))["step"]) == 4
    trained([first], made, range(4, 8))
    trained([second], other, range(4, 8))
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_checkpoint_without_the_schedules_numbers_is_refused_by_the_name_of_a_key():
    theirs = container(net(), groups=[group(name="AdamW")], kind=OptimizersContainer).state_dict()
    made = container(net(), schedule=GREEDY)
    with pytest.raises(KeyError, match="'(initial_lr|max_lr|control)' not found in checkpoint"):
        made.load_state_dict(theirs)
    assert made.fused.metrics().step == 0 and made.fused.read_lr() == [1e-2]


def test_the_state_is_there_before_the_first_step_and_nothing_has_moved():
    model = net()
    made = container(model, schedule=GREEDY)
    assert set(made.state_dict()) >= {"state.0.weight.exp_avg", "param_groups.2.bias.lr", "greedylr_fused.control"}
    assert same(model, net()) and made.fused.metrics().step == 0 and made.fused.read_lr() == [1e-2]


def test_parts_of_a_model_are_trained_by_one_optimizer():
    """As one model with all of their parameters, clipping included."""
    whole, first, second = torch.nn.ModuleList([net(), net()]), net(), net()
    options = dict(schedule=GREEDY, max_grad_norm=FoldedLimit(0.1))
    one, both = container(whole, **options), container(first, second, **options)
    assert len(both) == 1 and len(both.fused.param_groups) == 2 and both.folded_norm() is not None
    trained(whole, one, range(4))
    trained([first, second], both, range(4))
    assert same(whole[0], first) and same(whole[1], second)
    assert both.fused.read_lr() == one.fused.read_lr() * 2 and float(both.folded_norm()) > 0.1


def test_others_keep_torchtitans_optimizer_and_curve():
    model = net()
    made = container(model, groups=[group("0", "AdamW"), group()], schedule=GREEDY)
    curve = ShownLRsContainer.Config(warmup_steps=4).build(optimizers=made, training_steps=8)
    assert [type(optimizer) for optimizer in made] == [torch.optim.AdamW, FusedAdamW] and len(curve) == 2
    for _ in range(2):
        trained([model], made, range(1))
        curve.step()
    found = curve.get_metrics()
    assert found["lr/AdamW"] == pytest.approx(1e-2 * 3 / 4)
    assert found["lr/FusedAdamW"] == made.fused.read_lr()[0]
    assert found["schedule/loss"] == made.fused.metrics().loss and found["schedule/skipped"] == 0.0
    assert not [name for name in found if name.startswith("schedule/lr")]


@pytest.mark.filterwarnings("ignore:To get the last learning rate:UserWarning")  # of torchtitan's own loading
def test_either_container_of_schedulers_loads_the_others_checkpoint():
    made = container(net(), schedule=GREEDY)
    shown = ShownLRsContainer.Config().build(optimizers=made, training_steps=8)
    theirs = LRSchedulersContainer.Config(warmup_steps=4).build(
        optimizers=container(net(), groups=[group(name="AdamW")], kind=OptimizersContainer), training_steps=8
    )
    shown.step()
    shown.step()
    theirs.load_state_dict(shown.state_dict())
    assert theirs.get_metrics() == {"lr/AdamW": pytest.approx(1e-2 * 3 / 4)}
    before = made.fused.read_lr()
    shown.load_state_dict({"last_epoch": 7})
    assert shown.state_dict() == {"last_epoch": 7} and made.fused.read_lr() == before


def test_bfloat16_states():
    made = container(net(), implementation="fused_opt_states_bf16")
    assert made.state_dict()["state.0.weight.exp_avg"].dtype == torch.bfloat16


def refused(error, match, *parts, **options):
    with pytest.raises(error, match=match):
        container(*(parts or [net()]), **options)


def test_what_the_container_refuses():
    refused(TypeError, "got schedule, of the whole optimizer", groups=[group(schedule=GREEDY)])
    refused(ValueError, r"one clipping, got max_grad_norm=1\.0 beside training\.max_norm", max_grad_norm=1.0)
    refused(NotImplementedError, "Optimizer Lion not added", groups=[group(name="Lion")])


def made_by(folder, **changes):
    return dataclasses.replace(support.config(folder, steps=7), **changes)


def test_a_config_by_one_line_is_read_with_the_command_line(tmp_path, monkeypatch):
    """As torchtitan reads it: `--module registry --config tiny` and any options."""
    registry = types.ModuleType("registry_of_the_test")
    registry.tiny = lambda: ours.use_fused_adamw(
        support.config(tmp_path, steps=7), schedule=lambda steps: GreedyLR(base=Cosine(steps)), backend="reference"
    )
    monkeypatch.setitem(sys.modules, registry.__name__, registry)
    arguments = ["--module", registry.__name__, "--config", "tiny", "--training.steps", "9", "--training.max-norm", "2"]
    read = ConfigManager().parse_args(arguments)
    assert isinstance(read, ours.FusedAdamWTrainer.Config) and json.dumps(read.to_dict())
    options = ours._settled(read).optimizer.optimizer_factory_kwargs_by_name["FusedAdamW"]
    assert options == {"backend": "reference", "schedule": GreedyLR(base=Cosine(9)), "max_grad_norm": 2.0}
    assert read.optimizer.param_groups[0].optimizer_kwargs["lr"] == 2e-2


def settled(config):
    return ours._settled(config).optimizer.optimizer_factory_kwargs_by_name["FusedAdamW"]


def test_who_clips(tmp_path):
    """FusedAdamW where it trains all parameters; torchtitan where another optimizer is beside it; nobody at inf."""
    config = support.config(tmp_path, steps=7)
    assert settled(ours.use_fused_adamw(config))["max_grad_norm"] == 1.0
    config.training.max_norm = float("inf")
    assert "max_grad_norm" not in settled(ours.use_fused_adamw(config))
    config.training.max_norm = 1.0
    config.optimizer.param_groups.insert(0, group("norm", "Adam"))
    assert "max_grad_norm" not in settled(ours.use_fused_adamw(config))
    twice = settled(ours.use_fused_adamw(support.config(tmp_path, steps=7), max_grad_norm=0.5))
    refused(ValueError, "expected one clipping, got max_grad_norm=0.5", **twice)


def test_stages_are_counted(tmp_path):
    config = support.config(tmp_path, steps=7, pipeline_parallel_degree=2)
    assert settled(ours.use_fused_adamw(config))["partitions"] == 2
    assert settled(ours.use_fused_adamw(config, partitions=4))["partitions"] == 4


def test_configs_that_are_refused(tmp_path):
    config = support.config(tmp_path, steps=7)
    for wrong, error, match in [
        (object(), TypeError, "own Trainer.Config, got a object"),
        (ours.use_fused_adamw(config), TypeError, "got a FusedAdamWTrainer.Config"),
        (made_by(tmp_path, optimizer=FusedOptimizersContainer.Config()), TypeError, "own OptimizersContainer.Config"),
        (made_by(tmp_path, optimizer=OptimizersContainer.Config()), ValueError, r'optimizer_name="AdamW", got \[\]'),
    ]:
        with pytest.raises(error, match=match):
            ours.use_fused_adamw(wrong)
    with pytest.raises(TypeError, match="got the class GreedyLR"):
        ours.use_fused_adamw(config, schedule=GreedyLR)
    with pytest.raises(TypeError, match="schedule of greedylr_fused"):
        ours._settled(ours.use_fused_adamw(config, schedule=lambda steps: steps))
    own = {field.name: getattr(config, field.name) for field in dataclasses.fields(Trainer.Config)}
    with pytest.raises(TypeError, match="config.optimizer: expected a FusedOptimizersContainer.Config"):
        ours.FusedAdamWTrainer(ours.FusedAdamWTrainer.Config(**own))


def test_a_curve_that_nobody_follows_is_warned_of(tmp_path):
    curve = LRSchedulersContainer.Config(warmup_steps=20, decay_ratio=0.8)
    config = made_by(tmp_path, lr_scheduler=curve)
    with pytest.warns(UserWarning, match=r"warmup_steps=20, decay_ratio=0\.8 not used .* since GreedyLR decides"):
        settled(ours.use_fused_adamw(config))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        settled(ours.use_fused_adamw(config, schedule=GreedyLR(base=Cosine(7))))
        settled(ours.use_fused_adamw(config, schedule=None))


@pytest.mark.parametrize("cp", [1, 2])
def test_the_weighted_mean_is_torchtitans_sum(cp):
    """Over micro-batches and ranks; one of them has no valid token."""
    labels = [torch.tensor([[1, 2, IGNORE_INDEX, 3]]), torch.full((1, 4), IGNORE_INDEX), torch.tensor([[1, 2, 3, 4]])]
    tokens = torch.tensor(7)
    losses = [part / tokens for part in torch.tensor([2.5, 0.0, 9.0])] * cp
    given = [ours._mean_and_tokens(loss / cp, [own], tokens, cp) for loss, own in zip(losses, labels * cp, strict=True)]
    total = sum(float(mean * weight) for mean, weight in given) / sum(float(weight) for _, weight in given)
    assert total == pytest.approx(float(sum(losses)) / cp, rel=1e-6)
    assert [float(weight) * cp for _, weight in given[:3]] == [3.0, 0.0, 4.0] and float(given[1][0]) == 0.0
    joined = ours._mean_and_tokens(losses[0], labels, tokens, cp)  # of a pipeline, in lists
    assert float(joined[1]) * cp == 7.0
