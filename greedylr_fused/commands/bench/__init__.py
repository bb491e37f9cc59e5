"""`python -m greedylr_fused bench`: a minute of step times on this machine, beside torch's AdamW.

`command.py` has the options and the tables, `cases.py` the work that is timed, `timing.py` the timing.
"""

from greedylr_fused.commands.bench.command import main as main
from greedylr_fused.commands.bench.timing import Spread as Spread
