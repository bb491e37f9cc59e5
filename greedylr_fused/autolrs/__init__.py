"""AutoLRS: a learning rate for each stage of a run, found by short trials from a checkpoint. On the host.

`search.py` is the search, which says what the training loop does next and is told losses; `state.py` has what it asks
and remembers, `plan.py` its options and the length of its stages. `forecast.py` foresees the loss at the end of a stage
from a trial, `candidates.py` chooses the next LR to try. `driver.py` drives a loop of one's own through a search.
`extra.py` imports scipy and scikit-learn when they are needed: `pip install greedylr_fused[autolrs]`.
"""

from greedylr_fused.autolrs.driver import run
from greedylr_fused.autolrs.search import AutoLRS
from greedylr_fused.autolrs.state import Action

__all__ = ["Action", "AutoLRS", "run"]
