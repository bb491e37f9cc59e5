"""A few steps over a few small tensors: what `make gpu-check` runs under compute-sanitizer.

python tests/gpu/sanitized.py --backend cuda      also cpu, for a rehearsal
"""

import argparse

import torch

from greedylr_fused import FusedAdamW, GreedyLR

#: Odd sizes and offsets, so that heads and tails are reached; one tensor of several chunks.
SIZES = (1, 7, 130, 5001, 70_003)
SCHEDULE = GreedyLR(patience=0, smooth=True, window_size=2)
MIXES = ((torch.float32, None), (torch.bfloat16, None), (torch.bfloat16, torch.float32))


def tensors(dtype: torch.dtype, device: torch.device) -> list[torch.nn.Parameter]:
    """Parameters with gradients, each with an allocation of its own that ends where it ends."""
    params = []
    for index, n in enumerate(SIZES):
        shift = index % 4
        param, grad = (torch.full((n + shift,), value, dtype=dtype, device=device)[shift:] for value in (1.0, 0.5))
        params.append(torch.nn.Parameter(param))
        params[-1].grad = grad
    return params


def main() -> None:
    """Step, read the result, and fail if it is not finite."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", required=True)
    backend = parser.parse_args().backend
    device = torch.device("cpu" if backend == "cpu" else "cuda")
    losses = [torch.full((), value, device=device) for value in (3.0, 2.0, 4.0)]
    for dtype, state_dtype in MIXES:
        for amsgrad in (False, True):
            params = tensors(dtype, device)
            groups = [{"params": params[:2]}, {"params": params[2:], "lr": 0.02}]
            opt = FusedAdamW(
                groups,
                lr=0.01,
                amsgrad=amsgrad,
                schedule=SCHEDULE,
                max_grad_norm=0.1,
                state_dtype=state_dtype,
                backend=backend,
            )
            for loss in losses:
                opt.step(loss=loss)
            if device.type == "cuda":
                torch.cuda.synchronize()
            for param in params:
                values = param.detach().float().cpu()
                assert values.isfinite().all() and (values < 1).all(), f"{dtype} [{param.numel()}]: {values}"
    print(f"{backend}: {len(MIXES) * 2} optimizers stepped {len(losses)} times")


if __name__ == "__main__":
    main()
