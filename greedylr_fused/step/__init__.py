"""The host's side of a step, and its order.

What happens in `step(loss=loss)`? `losses.py` checks that the loss is one number. `groups.py` tells whether the groups
are others than before. `rates.py` sends LRs that were written into them to the device. `engine.py` has a backend, and
looks at all tensors to bring its table up to date, or builds a new one. The loss is observed. `flow.py` runs norm, sums
over ranks, update and control. `mirror.py` shows the snapshot that `arrivals.py` has from the device; `skips.py` warns
if all steps are skipped. `options.py` checks all options, `storage_options.py` those of how states are stored,
`zero.py` what ZeroRedundancyOptimizer allows.
"""

from greedylr_fused.step import flow, losses, options, storage_options
from greedylr_fused.step.engine import Engine
from greedylr_fused.step.flow import outside_graphs
from greedylr_fused.step.groups import PEAKS, check_last, peaks, started_at
from greedylr_fused.step.mirror import Listener, Metrics, Mirror
from greedylr_fused.step.options import check_schedule, is_number, lr_of
from greedylr_fused.step.rates import Rates
from greedylr_fused.step.zero import check_not_in_zero
