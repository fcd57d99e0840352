"""`python -m peerlm` is `peerlm`."""

from __future__ import annotations

import sys

from peerlm.cli.main import main

sys.exit(main())
