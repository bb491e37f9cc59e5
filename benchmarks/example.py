"""What is used of the training example, which is a folder of scripts and no package."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "examples"))

from config import SIZES  # noqa: E402
from data import DEFAULT_CAP, HELD_OUT, Batches, held_out_batches  # noqa: E402
from model import GPT, VOCABULARY, Shape, parameter_groups  # noqa: E402
from unfused import UnfusedAdamW  # noqa: E402

__all__ = ["DEFAULT_CAP", "GPT", "HELD_OUT", "SIZES", "VOCABULARY", "Batches", "Shape", "UnfusedAdamW"]
__all__ += ["held_out_batches", "parameter_groups"]
