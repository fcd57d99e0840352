"""What holds for all tests, wherever they run."""

from __future__ import annotations

import os
import signal

from hypothesis import settings

# Before numpy and torch are loaded. What is multiplied here is small: threads of one product wait for each other
# longer than they compute, and tests run beside each other already.
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(name, "1")

# A shell that starts something in the background has it ignore Ctrl-C, and so would all it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is; pytest's own time limit is enough. Each run tries the same
# examples, so that a test fails for what was changed; `--hypothesis-profile search` looks for new ones.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("search", deadline=None)
settings.load_profile("same")
