"""Lets the tests of this room import `world` and `machine`, wherever pytest is started."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent))
