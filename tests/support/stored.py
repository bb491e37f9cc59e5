"""Parameters whose states are stored in 8 bits or with remainders, and optimizers of them."""

import io

import torch

from greedylr_fused import FusedAdamW
from support.tensors import generator, parameter, set_grad, spread

F32, BF16, I8 = torch.float32, torch.bfloat16, torch.int8
#: In 8 bits are the first two; the second has three dimensions, and a row of the third is no multiple of 64.
SHAPES = [(64, 64), (5, 4, 256), (70, 60), (9,)]
#: Dtype of parameters, state_dtype and master_weights.
STORAGES = {
    "codes": (F32, I8, None),
    "codes+16": (BF16, I8, "int16"),
    "codes+8": (BF16, I8, "int8"),
    "floats+16": (BF16, None, "int16"),
    "floats+8": (BF16, F32, "int8"),
    "halves": (BF16, None, None),
}
STORED = list(STORAGES)[:-1]


def values(seed=0):
    numbers = [spread(generator(seed + i), torch.Size(shape).numel(), -2, 0) for i, shape in enumerate(SHAPES)]
    return [number.view(shape).float() for number, shape in zip(numbers, SHAPES, strict=True)]


def build(backend, device, storage, params=None, **options):
    dtype, state_dtype, master = STORAGES[storage]
    params = [parameter(value.to(device, dtype)) for value in (params or values())]
    groups = [{"params": params[:1], "lr": 0.02}, {"params": params[1:], "weight_decay": 0.1}]
    options = {"lr": 0.01, "state_dtype": state_dtype, "master_weights": master} | options
    return FusedAdamW(groups, backend=backend, **options)


def params_of(opt):
    return [p for group in opt.param_groups for p in group["params"]]


def train(opt, steps):
    for step in steps:
        for i, (param, grad) in enumerate(zip(params_of(opt), values(100 + 10 * step), strict=True)):
            set_grad(param, None if (step + i) % 7 == 0 else grad.to(param.device, param.dtype) / 8)
        opt.step()


def through_file(state):
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def loaded(opt, backend, device, storage, **options):
    """A new optimizer over copies of the parameters, from the saved state."""
    saved = through_file(opt.state_dict())
    other = build(backend, device, storage, [p.detach().clone() for p in params_of(opt)], **options)
    other.load_state_dict(saved)
    return other
