"""What every forked run would do first, done once in the process that they are forks of (``tests/conftest.py``)."""

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401  # a run ends with a plot
import torch

from cramming.peak import peak_flops_per_s

_before = torch.get_num_threads()
torch.set_num_threads(1)  # what is forked must have one thread
for _precision in ("float32", "bfloat16"):
    peak_flops_per_s(torch.device("cpu"), _precision)
torch.set_num_threads(_before)
