"""Start `python …` so that it outlives whoever asked: `python -m peerlm.launch.detach -m peerlm up …`.

Ray kills the children of an actor that ends, and the process group of its worker. So the program is a grandchild
whose parent has ended, in a session of its own. It gets back what a Ray worker takes from its children: SIGINT. Its
process id is printed; its standard error is the asker's.
"""

from __future__ import annotations

import os
import signal
import sys


def main() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if child := os.fork():
        os.write(1, b"%d\n" % child)
        return
    os.setsid()
    os.chdir("/")
    # The asker gave us the null device to read; what is printed goes there too.
    os.dup2(0, 1)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])


if __name__ == "__main__":
    main()
