"""The ranks that decide together, and what each adds to the sums of all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from greedylr_fused.capture import capturing
from greedylr_fused.control import Control
from greedylr_fused.ranks import agreement
from greedylr_fused.tensors import is_flattened, layout, sharded_dims

#: Stands for the default group that ranks were found in, before they are.
_NOWHERE = object()


class Ranks:
    """The processes whose losses and gradients decide together, and the share of each in the norm.

    A group of R ranks holds each of the S shards of a parameter R / S times. Weighted by S / R, the squares of what
    lies on each rank add up to those of the whole gradient, whatever is sharded, replicated or both.

    Args:
        process_group, partitions: as in `FusedAdamW`.
        needs_loss: whether the loss of all ranks decides anything.

    Attributes:
        size: R; 1 without torch.distributed.
        group: the process group, None for the default one.
    """

    def __init__(self, process_group: Any, partitions: int | None, *, needs_loss: bool) -> None:
        self.given, self.partitions, self._needs_loss = process_group, partitions, needs_loss
        self.size, self.group = 1, process_group
        self._world_when_found: Any = _NOWHERE
        self._sharded = False
        self._made: dict[tuple[int, ...], Any] = {}
        self._to_compare: list[Tensor] | None = None

    @property
    def moved(self) -> bool:
        """Return whether torch.distributed was initialised or shut down since the ranks were found."""
        return self._world_when_found is not _world()

    def find(self, params: Sequence[Tensor]) -> None:
        """Find the ranks that hold these parameters; every rank must call this for its own. It waits for no rank,
        unless the mesh has several dimensions and is a part of the world: then a group is created, once.

        Raises:
            RuntimeError: no group encloses all meshes, this rank is not in the group, or `partitions` does not fit it.
        """
        first, before, self._world_when_found = self._world_when_found is _NOWHERE, self._world_when_found, _world()
        if self._world_when_found is not before:
            self._made.clear()
        self.size, self.group = 1, self.given
        if self._world_when_found is not None:
            if self.group is None:
                self.group = self._group_of(params)
            self.size = dist.get_world_size(self.group)
        if self.size < 1 or (self.given is not None and self._world_when_found is None):
            raise RuntimeError(
                "FusedAdamW(process_group=...): expected a group that encloses all ranks which step together, got one "
                "that this rank is not in or that exists no more; pass each rank its own group"
            )
        if self.given is not None:
            self._check_enclosed(params)
        # A rank may have no parameters (ZeroRedundancyOptimizer with few); its collectives must not depend on that.
        shards = {self.partitions or 1 if self.size > 1 else 1, *map(self._shards, params)}
        if wrong := next((n for n in shards if self.size % n), None):
            raise RuntimeError(
                f"FusedAdamW: expected parameters in a number of parts that divides the {self.size} ranks of the "
                f"group, got {wrong} parts (mesh dimensions that shard, times partitions={self.partitions}); pass the "
                "process_group of all ranks that hold a part, or correct partitions"
            )
        self._sharded = max(shards) > 1
        if first and self.partitions is None and self.decide_together:
            self._to_compare = [param for param in params if param.requires_grad]

    def _check_enclosed(self, params: Sequence[Tensor]) -> None:
        own = set(dist.get_process_group_ranks(self.group))
        for spec in filter(None, map(layout, params)):
            for dim in sharded_dims(spec):
                ranks = dist.get_process_group_ranks(spec.mesh.get_group(dim))
                if not set(ranks) <= own:
                    raise RuntimeError(
                        f"FusedAdamW(process_group=...): expected a group that encloses the ranks {sorted(ranks)}, "
                        f"which hold parts of a parameter, got one of the ranks {sorted(own)}; leave process_group "
                        "out, or pass a larger group"
                    )

    @property
    def decide_together(self) -> bool:
        """Return whether there are collectives: with several ranks, if the loss decides or something is sharded."""
        return self.size > 1 and (self._sharded or self._needs_loss)

    def any(self, params: Sequence[Tensor], own: bool) -> bool:
        """Return whether `own` is true on any rank; waits for all if they decide together. `params`: as in `find`."""
        if self.moved:
            self.find(params)
        return any(agreement.gathered(own, self.group)) if self.decide_together else own

    def check_agree(self, control: Control) -> None:
        """Check that every rank holds the same control vector, bit for bit; waits for all of them.

        Raises:
            RuntimeError: on every rank alike; names a slot, the ranks and their values.
        """
        if self.size > 1:
            agreement.check_control(control, self.group)

    def _group_of(self, params: Sequence[Tensor]) -> Any:
        """Return the group of the parameters' root mesh; None, the default group, without a mesh, or if it has several
        dimensions and spans the world.
        """
        roots = list(dict.fromkeys(_root(spec.mesh) for spec in map(layout, params) if spec is not None))
        if not roots:
            return None
        members = [tuple(sorted(root.mesh.flatten().tolist())) for root in roots]
        largest, root = max(zip(members, roots, strict=True), key=lambda found: len(found[0]))
        if any(not set(ranks) <= set(largest) for ranks in members):
            raise RuntimeError(
                "FusedAdamW: expected DTensor parameters on meshes one of which encloses the others, got meshes of the "
                f"ranks {sorted(members)}; pass process_group=, the group of all ranks that step together"
            )
        if root.ndim == 1:
            return root.get_group()
        if len(largest) == dist.get_world_size():
            return None
        if largest not in self._made:
            self._made[largest] = dist.new_group(list(largest), use_local_synchronization=True)
        return self._made[largest]

    def _shards(self, param: Tensor) -> int:
        """Return how many different parts of a parameter the ranks hold together."""
        if self.size == 1:
            return 1
        spec = layout(param)
        if spec is None and self.partitions is None and is_flattened(param):
            return self.size
        parts = 1 if spec is None else math.prod(spec.mesh.size(dim) for dim in sharded_dims(spec))
        return parts * (self.partitions or 1)

    def norm_weight(self, param: Tensor) -> float:
        """Return the weight, S / R, of the squared gradient of a parameter on this rank."""
        return self._shards(param) / self.size if self._sharded or self._needs_loss else 1.0

    def shared(self, control: Control, scaled: bool) -> Tensor | None:
        """Return a view of the slots to add up over ranks at this step; None if each rank knows all there is to know:
        with one rank, or where nothing is sharded and nothing looks at the loss, as with torch's AdamW.
        """
        if self.size == 1:
            return None
        gradients = control.reads_gradients or scaled
        if self._needs_loss:
            return control.shared if gradients else control.pending
        return control.shared_gradients if self._sharded and gradients else None

    def add_up(self, shared: Tensor, *, norm: bool) -> Any:
        """Start to add up those slots over all ranks, in place, and return the work: its `wait()` makes the device wait
        on a GPU, the host on a CPU.

        Args:
            shared: what `shared()` returned.
            norm: whether the slots hold a norm; before the first one the parameters are compared.

        Raises:
            RuntimeError: the group has no backend for the device of the parameters, or the parameters are not divided
                over the ranks as the norm assumes.
        """
        if norm and self._to_compare is not None and not capturing(shared.device):
            agreement.check_parameters(self._to_compare, self.group)
            self._to_compare = None
        try:
            return dist.all_reduce(shared, group=self.group, async_op=True)
        except RuntimeError as error:
            if "No backend" not in str(error):
                raise
            raise RuntimeError(
                f"FusedAdamW adds up losses and norms on the device of the parameters, {shared.device.type}, for which "
                'the process group has no backend; write init_process_group("cpu:gloo,cuda:nccl")'
            ) from error


def _world() -> Any:
    """Return the default process group, None without."""
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None


def _root(mesh: Any) -> Any:
    """Return the mesh that a mesh was sliced or flattened from."""
    if hasattr(mesh, "_get_root_mesh"):
        return mesh._get_root_mesh()
    above = torch.distributed.device_mesh._mesh_resources.get_root_mesh(mesh)  # before PyTorch 2.10
    return mesh if above is mesh else _root(above)
