"""Both ways to look at tensors between steps find the same, whatever happened to them."""

import pytest
import torch
from support.tensors import parameter, set_grad

from greedylr_fused import FusedAdamW
from greedylr_fused.tensors import watch
from greedylr_fused.tensors.watch import COUNT, HYPER, MOVED, NEEDS_COPY, REBUILD, Watch


class Case:
    """An optimizer after one step, and both watches over its table."""

    def __init__(self):
        shapes = ((5, 4), (3,), (2, 3, 4, 4), (), (0,), (1, 1))
        self.params = [parameter(torch.randn(shape)) for shape in shapes]
        self.params.append(parameter(torch.randn(6, dtype=torch.complex64)))
        self.params[2].data = self.params[2].data.contiguous(memory_format=torch.channels_last)
        self.late, self.kept = parameter(torch.randn(3)), []
        groups = [{"params": self.params[:3]}, {"params": [*self.params[3:], self.late], "amsgrad": True}]
        self.opt = FusedAdamW(groups, backend="reference")
        self.fill()
        self.opt.step()
        table, args = self.opt._engine.table, (self.opt.param_groups, self.opt.state)
        built = (table.entries, [self.late], *args)
        self.rows = [torch.zeros(len(table.entries), dtype=torch.int64) for _ in range(2)]
        self.watches = [Watch(*built, self.rows[0]), watch.watching(*built, self.rows[1])]
        self.at = {id(entry.param): i for i, entry in enumerate(table.entries)}

    def fill(self):
        self.kept += [param.grad for param in self.params]  # so that no address comes back
        for param in self.params:
            param.grad = torch.randn_like(param)

    def look(self):
        """What both found: flags, parameters with odd gradients, and of which there is a gradient."""
        args = (self.opt.param_groups, self.opt.state)
        found, other = (w.look(*args) for w in self.watches)
        assert found == other
        odd, others = (w.odd() for w in self.watches)
        if not found & REBUILD:
            assert odd == others and torch.equal(*self.rows)
            stepped = [w.params_with_grad() for w in self.watches]
            assert all(a is b for a, b in zip(*stepped, strict=True))
        return found, [i for i, param in enumerate(self.params) if self.at[id(param)] in odd]


@pytest.fixture(params=["direct", "dlpack"])
def case(request, monkeypatch):
    if reason := watch.unavailable():
        pytest.skip(reason)
    if request.param == "dlpack":
        monkeypatch.setattr(watch, "_direct", lambda: None)
    case = Case()
    assert type(case.watches[1]) is not Watch
    assert case.look() == (MOVED | COUNT, [])
    assert case.look() == (0, [])
    return case


def own(case, i=0):
    return case.opt.state[case.params[i]]


def same_place(case):
    for param in case.params:
        param.grad.mul_(2)


def new_memory(case):
    case.fill()


def one_gone(case):
    case.params[0].grad = None


def frozen(case):
    for param in case.params:
        param.requires_grad_(False)


def other_memory_of_a_parameter(case):
    case.params[1].data = case.params[1].data.clone()


def smaller_parameter_at_the_same_address(case):
    case.params[0].grad = None
    case.params[0].data = case.params[0].data[:2]


def negated_scalar(case):
    case.kept.append(torch.ones(1, dtype=torch.complex64))
    case.params[5].data = case.kept[-1].conj().imag.reshape(1, 1)


def conjugated_parameter(case):
    case.params[6].data = case.params[6].data.conj()


def other_memory_of_a_moment(case):
    own(case)["exp_avg"].data = own(case)["exp_avg"].data.clone()


def shared_steps(case):
    own(case)["step"].share_memory_()


def other_parameter(case):
    case.opt.param_groups[0]["params"][1] = case.late


def fewer_parameters(case):
    case.opt.param_groups[1]["params"].pop()


def other_list_of_the_same(case):
    case.opt.param_groups[0]["params"] = list(case.opt.param_groups[0]["params"])


def another_group(case):
    case.opt.add_param_group({"params": [parameter(torch.zeros(2))]})


def a_group_less(case):
    case.opt.param_groups.pop()


def amsgrad_switched(case):
    case.opt.param_groups[0]["amsgrad"] = True


def a_newcomer(case):
    case.late.grad = torch.zeros(3)


def hyper_parameters(case):
    case.opt.param_groups[1]["betas"] = (0.5, 0.6)


def sparse(case):
    case.params[0].grad = torch.ones(5, 4).to_sparse()


def other_strides(case):
    case.params[0].grad = torch.ones(4, 5).t()


def not_channels_last(case):
    case.params[2].grad = torch.ones(2, 3, 4, 4)


def odd_strides_of_one(case):
    case.params[5].grad = torch.ones(8)[3:4].as_strided((1, 1), (7, 5))


def expanded(case):
    case.params[1].grad = torch.ones(1).expand(3)


def other_dtype(case):
    case.params[1].grad = None
    set_grad(case.params[1], torch.ones(3, dtype=torch.float64))


def other_dtype_in_the_same_memory(case):
    case.kept.append(case.params[1].grad)
    case.params[1].grad = None
    set_grad(case.params[1], case.kept[-1].view(torch.float16)[:3])


def older_shape(case):
    case.params[1].data = case.params[1].data[:2]


def conjugated(case):
    case.params[6].grad = case.params[6].grad.conj()


def negated(case):
    case.kept.append(torch.ones(3, dtype=torch.complex64))
    case.params[1].grad = case.kept[-1].conj().imag


def negated_one(case):
    case.kept.append(torch.ones((), dtype=torch.complex64))
    case.params[3].grad = case.kept[-1].conj().imag


def no_memory(case):
    case.params[0].grad.untyped_storage().resize_(0)


def zeros_without_memory(case):
    case.params[0].grad = torch._efficientzerotensor((5, 4))


def subclass(case):
    class Own(torch.Tensor):
        pass

    case.params[0].grad = torch.ones(5, 4).as_subclass(Own)


REPLACED = (
    other_memory_of_a_moment,
    shared_steps,
    other_memory_of_a_parameter,
    smaller_parameter_at_the_same_address,
    negated_scalar,
    conjugated_parameter,
)
STATES = {
    "transposed moment": lambda case: own(case)["exp_avg_sq"].t_(),
    "other moment": lambda case: own(case).update(exp_avg_sq=own(case)["exp_avg_sq"].clone()),
    "alias of a moment": lambda case: own(case).update(exp_avg=own(case)["exp_avg"].detach()),
    "other step": lambda case: own(case).update(step=own(case)["step"].clone()),
    "more state": lambda case: own(case).update(extra=1),
    "other order of state": lambda case: own(case).update(exp_avg=own(case).pop("exp_avg")),
    "other dictionary": lambda case: case.opt.state.update({case.params[0]: dict(own(case))}),
    "cleared state": lambda case: case.opt.state.clear(),
}
GROUPS = (other_parameter, fewer_parameters, another_group, a_group_less, amsgrad_switched, a_newcomer, older_shape)
ODDITIES = {
    **{sparse: 0, other_strides: 0, not_channels_last: 2, expanded: 1, other_dtype: 1, conjugated: 6, negated: 1},
    **{other_dtype_in_the_same_memory: 1, negated_one: 3, no_memory: 0, zeros_without_memory: 0},
}


def called(function):
    return function.__name__


@pytest.mark.parametrize("change", STATES)
def test_state_that_the_table_does_not_describe(case, change):
    STATES[change](case)
    assert case.look() == (REBUILD, [])


@pytest.mark.parametrize("change", [*REPLACED, *GROUPS], ids=called)
def test_what_the_table_does_not_describe(case, change):
    change(case)
    assert case.look() == (REBUILD, [])


@pytest.mark.parametrize("change", ODDITIES, ids=called)
def test_gradients_that_no_kernel_can_read(case, change):
    change(case)
    for _ in range(2):
        assert case.look() == (NEEDS_COPY, [ODDITIES[change]])


def test_gradients_that_moved_or_went(case):
    for change, found in ((new_memory, MOVED), (one_gone, MOVED | COUNT), (subclass, MOVED | COUNT)):
        change(case)
        assert case.look() == (found, []) and case.look() == (0, [])
    assert case.rows[0][case.at[id(case.params[0])]] == case.params[0].grad.data_ptr()


@pytest.mark.parametrize("change", [same_place, frozen, other_list_of_the_same, odd_strides_of_one], ids=called)
def test_what_does_not_matter(case, change):
    change(case)
    assert case.look()[0] & ~MOVED == 0


def test_hyper_parameters_that_can_and_cannot_change_where_they_are(case):
    hyper_parameters(case)
    assert case.look() == (HYPER, []) and case.look() == (0, [])
    group = case.opt.param_groups[0]
    for change in (group.setdefault, group.pop):
        change("corrected_weight_decay", 0.5)  # only there where it is asked for
        assert case.look() == (HYPER, []) and case.look() == (0, [])
    group["betas"] = [0.5, 0.6]
    assert case.look() == (HYPER, []) and case.look() == (HYPER, [])


def test_an_address_put_by_hand(case):
    for w in case.watches:
        assert [w.put(0, address) for address in (7, 7, 0, 8)] == [MOVED, 0, MOVED | COUNT, MOVED | COUNT]
    assert torch.equal(*case.rows)


def test_what_dlpack_has_no_word_for_is_watched_in_python():
    param = torch.nn.Parameter(torch.zeros(3, device="meta"))
    args = ([], [param], [{"amsgrad": False, "params": [param], **dict.fromkeys(watch._HYPER, 0.5)}])
    for state in ({}, type("Other", (), {"items": lambda self: [], "__len__": lambda self: 0})()):
        found = watch.watching(*args, state, torch.zeros(0, dtype=torch.int64))
        assert found.look(args[2], state) == 0


def test_reasons_to_look_in_python(monkeypatch):
    monkeypatch.setattr(watch, "_native", None)
    monkeypatch.setattr(watch, "_import_error", "of a test")
    assert "not usable: of a test" in watch.unavailable()
    monkeypatch.setattr(watch, "_native", object())
    monkeypatch.delattr(torch.Tensor, "__dlpack_c_exchange_api__", raising=False)
    assert "2.10" in watch.unavailable()
