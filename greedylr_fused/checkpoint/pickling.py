"""How an optimizer is pickled and deep-copied: control state as numbers, tables and mirrors built anew."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

import torch
from torch.optim.optimizer import Optimizer

from greedylr_fused.checkpoint import state_dict as checkpoint
from greedylr_fused.ranks.ranks import Ranks
from greedylr_fused.step.engine import Engine
from greedylr_fused.step.options import needs_loss
from greedylr_fused.step.rates import Rates

if TYPE_CHECKING:
    from greedylr_fused.optimizer import FusedAdamW

_OPTIONS = ("_schedule", "_max_grad_norm", "_skip_nonfinite")


def get_state(self: FusedAdamW) -> dict[str, Any]:
    """Plain numbers and tensors. A process group is known by its name, in this process and others that have it."""
    own = {name: self.__dict__[name] for name in _OPTIONS}
    engine, ranks = self._engine, self._engine.ranks
    own["_made_of"] = {
        "backend": engine.name,
        "state_dtype": engine.state_dtype,
        "numbers": self._numbers(),
        "pending": self._control.pending.tolist(),
        "observed": self._control.observed,
        "group": None if ranks.given is None else ranks.given.group_name,
        "partitions": ranks.partitions,
        "begun": engine.begun,
    }
    torchs = Optimizer.__getstate__(self)
    return torchs | own | {"state": checkpoint.with_own_steps(torchs["state"])}


def set_state(self: FusedAdamW, state: dict[str, Any]) -> None:
    """Take over what `get_state` of this version returned, or, as torch's optimizers do, a partial state.

    Raises:
        RuntimeError: the process group that it was constructed with does not exist here.
    """
    Optimizer.__setstate__(self, {key: value for key, value in state.items() if key != "_made_of"})
    for group in self.param_groups:
        for name in ("amsgrad", "maximize"):
            group.setdefault(name, False)
        group["decoupled_weight_decay"] = True
    if "_made_of" not in state:
        return
    made = state["_made_of"]
    self.state = defaultdict(dict, self.state)
    self._listeners = []  # those of the original go on with it
    driven = self.schedule is not None
    ranks = Ranks(_group_named(made["group"]), made["partitions"], driven=needs_loss(self.schedule))
    self._engine = Engine(made["backend"], self._device(), made["state_dtype"], ranks)
    self._engine.begun = made["begun"]
    self._control = self._new_control([own["initial_lr"] for own in made["numbers"]])
    self._control.load(made["numbers"])
    self._control.restore_decay()
    self._control.pending.copy_(torch.tensor(made["pending"], dtype=torch.float64, device="cpu"))
    self._control.observed = made["observed"]
    self._rates = Rates(self._control, self.param_groups, driven=driven)


def _group_named(name: str | None) -> Any:
    if name is None:
        return None
    try:
        from torch.distributed import distributed_c10d as c10d

        return c10d._resolve_process_group(name)  # type: ignore[attr-defined, arg-type]
    except Exception as error:
        raise RuntimeError(
            f"FusedAdamW: got a pickle of an optimizer with the process group {name!r}, which does not exist in this "
            "process; create the groups in the same order before unpickling, or save state_dict() instead"
        ) from error
