"""The host's side of a step, and its order.

What happens in `step(loss=loss)`? `losses.py`: the loss is one number. `rates.py`: what the host wrote to the groups
goes to the device. `engine.py`: a backend, and its table brought up to date by a look at all tensors, or built anew.
The loss is observed. `flow.py`: norm, sums over ranks, update, control. `mirror.py`: a snapshot of the device is asked
for, and shown when it has arrived. `options.py` has the checks of all options.
"""

from greedylr_fused.step import flow as flow
from greedylr_fused.step import losses as losses
from greedylr_fused.step import options as options
from greedylr_fused.step.engine import Engine as Engine
from greedylr_fused.step.flow import outside_graphs as outside_graphs
from greedylr_fused.step.mirror import Listener as Listener
from greedylr_fused.step.mirror import Metrics as Metrics
from greedylr_fused.step.mirror import Mirror as Mirror
from greedylr_fused.step.options import check_schedule as check_schedule
from greedylr_fused.step.options import is_number as is_number
from greedylr_fused.step.rates import Rates as Rates
from greedylr_fused.step.rates import per_group as per_group
