"""Random faults for a model in stages, whose nodes hold some of them each: a minute of trouble, then peace.

What `peerlm sim faults --set model.stages=N` plays (peerlm/sim/stage_menus.py), in batches as bench/faults.py does it.
"""

from __future__ import annotations

import sys

from bench import report
from bench.faults import flags_of, measure
from peerlm.sim.stage_menus import STAGES_MOST


def main() -> int:
    flags = flags_of(__doc__)
    counts = range(2, STAGES_MOST + 1)
    flags.add_argument("--stages", type=int, default=3, choices=counts, help="of the model [3]")
    return report.perform("faults_stages", flags, measure)


if __name__ == "__main__":
    sys.exit(main())
