"""What a service tells the supervisor that started it, in the words of sd_notify(3). Silent where there is none.

The watchdog's word is sent from the event loop: a loop that is stuck is not heard of, and the
supervisor starts the process anew.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import MutableMapping

log = logging.getLogger(__name__)


class Supervisor:
    """Whoever listens on $NOTIFY_SOCKET. The variables are taken, so that no job or program of ours has them."""

    def __init__(self, environ: MutableMapping[str, str] = os.environ) -> None:
        address = environ.pop("NOTIFY_SOCKET", "")
        watchdog_us = environ.pop("WATCHDOG_USEC", "")
        watched = environ.pop("WATCHDOG_PID", "") or str(os.getpid())
        # "@" stands for the zero byte that abstract names begin with.
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._watchdog_s = 0.0
        if watchdog_us.isdecimal() and watched == str(os.getpid()):
            self._watchdog_s = int(watchdog_us) / 1e6

    def tell(self, *words: str) -> None:
        """Such as READY=1. Never waits and never fails: a supervisor that is gone must not stop us."""
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as to:
                to.setblocking(False)
                to.sendto("\n".join(words).encode(), self._address)
        except OSError as e:
            log.warning("the supervisor cannot be told %s: %s", words[0], e)

    async def keep_watchdog(self) -> None:
        """Tells at half the time that it grants, until cancelled. Ends at once if nothing watches."""
        while self._address and self._watchdog_s:
            self.tell("WATCHDOG=1")
            await asyncio.sleep(self._watchdog_s / 2)
