"""Optimizers over tensors of all kinds, and backups of them that tests take and put back as a trial's control does."""

import os

import torch

from greedylr_fused import FusedAdamW
from greedylr_fused.tensors import CHUNK, Backup
from support.stored import STORAGES
from support.stored import build as build_stored
from support.tensors import assert_same, generator, parameter, set_grad, short, snapshot

NOTHING, TAKE, PUT_BACK = 0.0, 1.0, 2.0
F32, F64, BF16, F16, C64 = torch.float32, torch.float64, torch.bfloat16, torch.float16, torch.complex64
#: Every size up to a wide access and one more element, and some of a chunk of 4 bytes and more; with the interpreter,
#: which takes milliseconds for each thousand of elements, one.
SIZES = (*range(18), CHUNK // 4, 2 * CHUNK // 4 + 5, CHUNK // 4 + 1)
if os.environ.get("TRITON_INTERPRET") == "1":
    SIZES = (*range(0, 18, 3), SIZES[-1])


def numbers(seed, *shape, dtype=F32, device="cpu"):
    kind = F32 if dtype in (BF16, F16) else dtype
    return torch.randn(shape, generator=generator(seed), dtype=kind).to(device, dtype)


def gaps(values):
    return torch.stack([values, values], -1)[..., 0]


def at_offset(values, offset):
    """The same values in a memory of their own, so many elements behind its begin."""
    memory = torch.zeros(offset + values.numel(), dtype=values.dtype, device=values.device)
    return memory[offset:].copy_(values.reshape(-1)).view(values.shape)


def params_of(opt):
    return [param for group in opt.param_groups for param in group["params"]]


def train(opt, steps, skip=5):
    for step in steps:
        for i, param in enumerate(params_of(opt)):
            grad = numbers(1000 * step + i, *param.shape, dtype=param.dtype, device=param.device)
            set_grad(param, None if (step + i) % skip == 0 else grad)
        opt.step()


def of_sizes(backend, device, dtype=F32, **options):
    params = [parameter(numbers(n, n, dtype=dtype, device=device)) for n in SIZES]
    return FusedAdamW(params, lr=0.01, backend=backend, **options)


def of_layouts(backend, device, **options):
    image = numbers(1, 4, 6, 5, 7, device=device)
    values = [
        image.to(memory_format=torch.channels_last),
        gaps(image),
        numbers(2, 9, 8, device=device).t(),
        numbers(3, 40, device=device)[::3],
        numbers(4, 3, 5, dtype=C64, device=device),
        gaps(numbers(5, 3, 5, dtype=C64, device=device)),
        numbers(6, 7, dtype=F64, device=device),
        numbers(7, device=device),
        *(at_offset(numbers(8, 37, dtype=dtype, device=device), k) for dtype in (F32, BF16) for k in range(1, 9)),
    ]
    return FusedAdamW([parameter(value) for value in values], lr=0.01, backend=backend, **options)


def with_copies(backend, device, **options):
    image = numbers(1, 4, 6, 5, 7, device=device)
    values = [image, image.clone(), gaps(image), image.to(memory_format=torch.channels_last)]
    values += [numbers(n, n, device=device) for n in (7, SIZES[-1], 130)]
    params = [parameter(value) for value in values]
    opt = FusedAdamW(params, lr=0.01, backend=backend, **options)
    copies = [torch.zeros_like(param, dtype=BF16 if i % 2 else F16) for i, param in enumerate(params)]
    copies[1] = gaps(copies[1])
    copies[-1] = at_offset(copies[-1], 3)
    opt.keep_copies(zip(params[:-1], copies[:-1], strict=True))
    return opt


CASES = {
    **{short(dtype): lambda *at, dtype=dtype: of_sizes(*at, dtype) for dtype in (F32, BF16, F16, F64)},
    "amsgrad": lambda *at: of_sizes(*at, amsgrad=True),
    "16 bits with float32 moments": lambda *at: of_sizes(*at, BF16, state_dtype=F32),
    "float32 with bfloat16 moments": lambda *at: of_sizes(*at, state_dtype=BF16),
    "layouts": of_layouts,
    "copies": with_copies,
    **{name: lambda *at, name=name: build_stored(*at, name) for name in STORAGES},
}


class Trial:
    """An optimizer that has made a step, and a backup of what it changes.

    Args:
        opt: the optimizer.
        where: as of `Backup`.
    """

    def __init__(self, opt, where="device"):
        self.opt, self.backup = opt, Backup(where)
        self.place()

    def place(self):
        with torch.no_grad():
            self.backup.place(self.opt._engine.table, self.opt._engine.copies)

    @torch.no_grad()
    def run(self, action):
        """What an engine does after a step whose control wrote this action."""
        slot, table = self.opt._control.slot("backup"), self.backup.table
        slot.fill_(action)
        table.refresh()
        self.opt._engine.backend.backup(table)
        table.release()
        slot.fill_(NOTHING)

    def take(self):
        """Take a backup, which changes nothing else; return what it is of."""
        before = self.all()
        self.run(TAKE)
        assert_same(self.all(), before)
        return before

    def rebuild(self):
        """A new table, as the next step would need it, and the backup placed in it."""
        self.opt._engine.discard()
        self.opt._engine.rebuilt(self.opt.param_groups, self.opt.state, self.opt._control)
        self.place()

    def all(self):
        """Copies of all that a step may change, by name."""
        copies = {f"copy {i}": copy.detach().clone() for i, copy in enumerate(self.opt._engine.copies.of.values())}
        return snapshot(self.opt, control=False) | copies


def rooms(backup):
    """The bytes of the memory that what is kept lies in."""
    storages = [own.untyped_storage() for _, own in backup.table.pairs]
    return [torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage) for storage in storages]


def poison(backup):
    """Fill that memory with bytes that no step stores, and return a copy of it."""
    return [room.fill_(0xA5).clone() for room in rooms(backup)]
