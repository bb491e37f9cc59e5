"""What a step leaves behind on the host (nothing), and what it asks of PyTorch (the same for any number of tensors)."""

import gc
import tracemalloc
import weakref

import pytest
import torch
from support.growth import check, counts, least_growth
from support.tensors import parameter
from torch.utils._python_dispatch import TorchDispatchMode

from greedylr_fused import FusedAdamW, GreedyLR

STEPS, STRETCHES = 1_000, 3
SCHEDULE = GreedyLR(patience=2, smooth=True, window_size=5)


def build(n, **options):
    params = [parameter(torch.randn(4), torch.randn(4)) for _ in range(n)]
    return params, FusedAdamW(params, lr=1e-3, schedule=SCHEDULE, max_grad_norm=1.0, **options)


def unchanged(params):
    pass


def written_in_place(params):
    for param in params:
        param.grad.mul_(0.5)


def reallocated(params):
    for param in params:
        param.grad = torch.ones(4)


def gone_at_every_other_step(params):
    params[0].grad = None if params[0].grad is not None else torch.ones(4)


def restrided(params):
    params[0].grad = torch.ones(8)[::2]


@pytest.mark.parametrize(
    "change", [unchanged, reallocated, gone_at_every_other_step, restrided], ids=lambda f: f.__name__
)
def test_nothing_grows(change):
    params, opt = build(3)
    loss = torch.tensor(2.0)

    def steps(n):
        for _ in range(n):
            change(params)
            opt.step(loss=loss)
        opt.metrics()

    def growth(stretches=STRETCHES):
        found = [counts()]
        for _ in range(stretches):
            steps(STEPS)
            found.append(counts())
        return least_growth(found)

    steps(200)
    check(growth(), STEPS)
    tracemalloc.start()
    try:
        steps(100)
        check({"traced": growth(2)["traced"]}, STEPS)  # its own tables are on the heap
    finally:
        tracemalloc.stop()


class Counted(TorchDispatchMode):
    """Counts the operations that reach PyTorch's dispatcher."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("change", [unchanged, written_in_place, reallocated], ids=lambda f: f.__name__)
def test_operations_of_a_step_do_not_depend_on_the_number_of_tensors(change):
    found = []
    for n in (1, 10, 100):
        params, opt = build(n, backend="auto")
        if opt._engine.choice.backend.name == "reference":
            pytest.skip("the portable backend is made of operations")
        loss = torch.tensor(2.0)
        opt.step(loss=loss)
        change(params)
        with Counted() as counted:
            opt.step(loss=loss)
        found.append(counted.names)
    assert found[0] == found[1] == found[2]
    assert len(found[0]) <= 6


def test_a_type_of_tensors_that_leads_back_to_its_optimizer_is_collected():
    class Own(torch.Tensor):
        pass

    opt = FusedAdamW([torch.nn.Parameter(torch.randn(3).as_subclass(Own))], backend="reference")
    opt.param_groups[0]["params"][0].grad = torch.randn(3)
    opt.step()
    Own.opt, gone = opt, weakref.ref(opt)
    del opt, Own
    gc.collect()
    assert gone() is None
