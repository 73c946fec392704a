"""Ports, addresses and uids that are this process's own until it ends, whatever else runs on the machine.

What is merely free may be taken between the look and the use, or while a server is away to be restarted: by another
run of the tests, or by any connection, whose port the kernel draws. So ours lie outside of what it draws from, and
a socket marks each, on an address that nobody uses otherwise.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_PORTS, _NETWORKS = "127.255.255.1", "127.255.255.2"
"""Where the marks of ports are, and those of networks."""


def own_port() -> int:
    """Of 127.0.0.1. Nobody listens there."""
    return next(port for port in _ports if _free("127.0.0.1", port) and _marked(_PORTS, port))


@cache
def own_network() -> int:
    """The n of 127.n.0.0/16."""
    return next(n for n in range(16, 255) if _marked(_NETWORKS, 10_000 + n))


def own_uids() -> int:
    """The first of a thousand."""
    return 10_000 + own_network() % 50 * 1000


def _undrawn() -> Iterator[int]:
    low, high = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    yield from range(10_000, low)
    yield from range(high + 1, 65_536)


_ports = _undrawn()


def _free(address: str, port: int) -> bool:
    with socket.socket() as s:
        s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            s.bind((address, port))
        except OSError:
            return False
    return True


def _marked(address: str, port: int) -> bool:
    """False if another process has the mark. It stays as long as this process."""
    with socket.socket() as s:
        try:
            s.bind((address, port))
        except OSError:
            return False
        s.detach()
    return True
