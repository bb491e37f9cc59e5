"""What a checkpoint holds beyond that of `torch.optim.AdamW`, and how it comes back without being rounded.

With a schedule, "control" in every parameter group: its state as plain numbers and one text. Without one, nothing.
`state_dict.py` saves and loads, all of it or nothing; `checks.py` looks at all of a checkpoint before anything is
changed; `numbers.py` are the schedule's numbers, and what of them another run takes; `pickling.py` copies and pickles.
"""

from greedylr_fused.checkpoint.numbers import KEY as KEY
from greedylr_fused.checkpoint.numbers import fitted as fitted
from greedylr_fused.checkpoint.numbers import read_control as read_control
from greedylr_fused.checkpoint.numbers import saved as saved
from greedylr_fused.checkpoint.pickling import engine as engine
from greedylr_fused.checkpoint.pickling import fill as fill
from greedylr_fused.checkpoint.pickling import get_state as get_state
from greedylr_fused.checkpoint.pickling import set_state as set_state
from greedylr_fused.checkpoint.pickling import starting_lrs as starting_lrs
from greedylr_fused.checkpoint.state_dict import load as load
from greedylr_fused.checkpoint.state_dict import mark as mark
from greedylr_fused.checkpoint.state_dict import save as save
