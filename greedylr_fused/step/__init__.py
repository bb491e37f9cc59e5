"""The host's side of a step, and its order.

What happens in `step(loss=loss)`? `losses.py`: the loss is one number. `rates.py`: what the host wrote to the groups
goes to the device. `engine.py`: a backend, and its table brought up to date by a look at all tensors, or built anew.
The loss is observed. `flow.py`: norm, sums over ranks, update, control. `mirror.py`: a snapshot of the device is asked
for, and shown when it has arrived; `skips.py` warns if no step is taken any more. `options.py` has the checks of all
options.
"""

from greedylr_fused.step import flow, losses, options
from greedylr_fused.step.engine import Engine
from greedylr_fused.step.flow import outside_graphs
from greedylr_fused.step.mirror import Listener, Metrics, Mirror
from greedylr_fused.step.options import check_schedule, is_number, lr_of
from greedylr_fused.step.rates import Rates, per_group
