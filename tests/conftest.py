"""What holds for all tests, wherever they run."""

from __future__ import annotations

import signal

from hypothesis import settings

# A shell that starts something in the background has it ignore Ctrl-C, and so would all it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes says how busy the machine is; pytest's own time limit is enough.
settings.register_profile("patient", deadline=None)
settings.load_profile("patient")
