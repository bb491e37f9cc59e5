"""What PyTorch and Lightning warn of in their own code, as marks of the tests that go through it."""

import pytest

ignored = pytest.mark.filterwarnings

#: Inside torch.distributed.checkpoint.
TYPED_STORAGE = ignored("ignore:TypedStorage is deprecated:UserWarning")
#: Where a network returns a view, as every reshape is; nobody writes to it.
FSDP2_VIEW = ignored("ignore:FSDP2-wrapped module .* returned a view:UserWarning")
#: FSDP1, which many still run.
FSDP1 = ignored("ignore:.*FSDP.* deprecated:FutureWarning")
#: torch.distributed.checkpoint without a process group.
SINGLE_PROCESS = ignored("ignore:torch.distributed is disabled:UserWarning")
#: Lightning 2.6 with PyTorch 2.13.
LEAF_SPEC = ignored("ignore:.*LeafSpec.*:FutureWarning")
#: Lightning, of a training step that leaves its batch out.
NO_LOSS = ignored("ignore:.*training_step. returned .None.*:UserWarning")
