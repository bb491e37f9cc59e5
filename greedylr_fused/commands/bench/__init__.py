"""`python -m greedylr_fused bench`: a minute of step times on this machine, beside torch's AdamW.

`command.py` has the options and the tables, `cases.py` what is timed, `timing.py` how.
"""

from greedylr_fused.commands.bench.command import main as main
from greedylr_fused.commands.bench.timing import Spread as Spread
