"""Which hosts callbacks may go to: asked when a job is added, and again of every redirect."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit


def allowance(allow: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a URL's host may be called: name, *.domain, each with or without :port; none listed is any."""

    def allowed(url: str) -> bool:
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower(), parts.port
        except ValueError:  # such as a port above 65535
            return False
        if parts.scheme not in ("http", "https") or not host:
            return False
        port = port or (443 if parts.scheme == "https" else 80)
        return not allow or any(_matches(entry.lower(), host, port) for entry in allow)

    return allowed


def _matches(entry: str, host: str, port: int) -> bool:
    name, _, wanted = entry.rpartition(":") if entry.rpartition(":")[2].isdigit() else (entry, "", "")
    if wanted and int(wanted) != port:
        return False
    name = name.strip("[]")  # of an IPv6 address
    return host.endswith(name[1:]) if name.startswith("*.") else host == name
