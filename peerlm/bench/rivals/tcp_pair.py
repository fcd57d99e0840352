"""One of two processes that send each other a whole vector at once over a plain TCP connection, and do nothing
with it: how fast the line is. `python tcp_pair.py RANK HOST PORT_FILE PARAMETERS`
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from pathlib import Path

WAIT_S = 60.0
PIECE_BYTES = 1 << 20


def connection(rank: int, host: str, port_file: Path) -> socket.socket:
    if rank == 0:
        with socket.create_server((host, 0)) as listener:
            listener.settimeout(WAIT_S)
            beside = port_file.with_suffix(".new")
            beside.write_text(str(listener.getsockname()[1]))
            beside.rename(port_file)
            return listener.accept()[0]
    until = time.monotonic() + WAIT_S
    while not port_file.exists():
        if time.monotonic() > until:
            raise TimeoutError("the other process does not listen")
        time.sleep(0.01)
    return socket.create_connection((host, int(port_file.read_text())), WAIT_S)


def swap(line: socket.socket, size: int) -> None:
    """Send and receive so many bytes, both at once."""
    piece = bytes(PIECE_BYTES)

    def send() -> None:
        for start in range(0, size, PIECE_BYTES):
            line.sendall(piece[: size - start])

    sender = threading.Thread(target=send)
    sender.start()
    left, into = size, bytearray(PIECE_BYTES)
    while left:
        got = line.recv_into(into, min(left, PIECE_BYTES))
        if not got:
            raise ConnectionError("the other process has gone")
        left -= got
    sender.join()


def main() -> None:
    rank, host, port_file, parameters = int(sys.argv[1]), *sys.argv[2:4], int(sys.argv[4])
    line = connection(rank, host, Path(port_file))
    line.setblocking(True)
    answer({})
    for command in sys.stdin:
        began = time.monotonic()
        swap(line, 1 if command.strip() == "prepare" else 4 * parameters)
        answer({"began": began, "ended": time.monotonic()})


def answer(words: dict[str, float]) -> None:
    sys.stdout.write(json.dumps(words) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
