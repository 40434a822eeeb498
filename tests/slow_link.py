"""Carry Ethernet frames between two interfaces, late and not all of them.

``python slow_link.py INTERFACE INTERFACE DELAY LOSS RATE``: a link with that many seconds of delay
each way, on which this share of the frames is lost, and which takes so many bytes a second each
way. It works without any help of the kernel's traffic control.
"""

import heapq
import random
import select
import socket
import sys
from itertools import count
from time import monotonic
from typing import Any

_ALL_PROTOCOLS = 3
_VNET_HEADER, _IGNORE_OUTGOING = 15, 23  # options of packet sockets
_SOL_PACKET = 263
_LARGEST = 2**17  # bytes; with its header a frame says what the network card still has to do


def open_socket(interface: str) -> socket.socket:
    """All frames that come in; the header keeps checksums that were not computed yet."""
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ALL_PROTOCOLS))
    opened.setsockopt(_SOL_PACKET, _VNET_HEADER, 1)
    opened.setsockopt(_SOL_PACKET, _IGNORE_OUTGOING, 1)
    opened.bind((interface, 0))
    return opened


def carry(first: Any, second: Any, delay: Any, loss: Any, rate: Any) -> None:
    """Until killed. The order of frames is kept."""
    other, draw, numbers = {first: second, second: first}, random.Random(0), count()
    sent = {first: 0.0, second: 0.0}  # when the last frame from there has left, however long it is
    waiting: list[Any] = []
    while True:
        timeout = max(0.0, waiting[0][0] - monotonic()) if waiting else None
        for source in select.select([first, second], [], [], timeout)[0]:
            frame = source.recv(_LARGEST)
            sent[source] = max(sent[source], monotonic()) + len(frame) / rate
            if draw.random() >= loss:
                arrives = sent[source] + delay
                heapq.heappush(waiting, (arrives, next(numbers), other[source], frame))
        while waiting and waiting[0][0] <= monotonic():
            _, _, target, frame = heapq.heappop(waiting)
            target.send(frame)


if __name__ == "__main__":
    ends = [open_socket(interface) for interface in sys.argv[1:3]]
    print("carrying", flush=True)
    carry(*ends, *map(float, sys.argv[3:]))
