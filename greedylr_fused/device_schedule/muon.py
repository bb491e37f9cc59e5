"""torch's Muon, with a learning rate that stays on the device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon` that reads an LR tensor on the device, for a `DeviceSchedule` and for CUDA graphs.

    torch's own passes the LR as `alpha=` of an addition, a number: the host waits for it at every step and parameter.
    Here the update is multiplied by the tensor. Arguments, state and checkpoints are torch's; so are, with float32 and
    float64 parameters, the bits. To 16-bit ones `lr * update` is added in float32, which torch does on GPUs alone.

    `params` are matrices alone, of any floating-point dtype: embeddings, heads, biases and gains are for AdamW. `lr` is
    a tensor of one element on their device, or a number >= 0, by default 1e-3. `weight_decay`, `momentum`, `nesterov`,
    `ns_coefficients`, `eps`, `ns_steps` and `adjust_lr_fn` are torch's, with its defaults;
    `adjust_lr_fn="match_rms_adamw"` takes the LR and the weight decay of AdamW (arXiv 2502.16982).

    Raises:
        ValueError: a parameter that is no matrix, or an option out of range.
        RuntimeError: complex parameters, or sparse gradients, in `step()`.

    References: https://kellerjordan.github.io/posts/muon/
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update the parameters that have a gradient, with the LR that their group's tensor holds.

        Args:
            closure: clears gradients, computes the loss, calls backward, returns the loss.

        Returns:
            What the closure returned, or None.
        """
        from torch.optim import _muon  # private to torch: if it moves, no more than this breaks

        result = None
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        for group in self.param_groups:
            lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
            params, grads, buffers = list[Tensor](), list[Tensor](), list[Tensor]()
            self._init_group(group, params, grads, buffers)
            for param, grad, buffer in zip(params, grads, buffers, strict=True):
                buffer.lerp_(grad, 1 - group["momentum"])
                direction = grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                update = _muon._zeropower_via_newtonschulz(
                    direction, group["ns_coefficients"], group["ns_steps"], group["eps"]
                )
                own = _muon._adjust_lr(lr, group["adjust_lr_fn"], param.shape)  # type: ignore[arg-type]
                param.mul_(1 - lr * group["weight_decay"])
                _subtract(param, update, own)
        return result


def _subtract(param: Tensor, update: Tensor, lr: float | Tensor) -> None:
    """Subtract `lr * update` from a parameter, in place; a tensor is not read by the host."""
    if not isinstance(lr, Tensor):
        param.add_(update, alpha=-lr)
    elif param.dtype.itemsize >= 4:
        param.addcmul_(update, -lr)
    else:  # whose operations would round the LR to 16 bits
        param.copy_(torch.addcmul(param.float(), update, -lr))
