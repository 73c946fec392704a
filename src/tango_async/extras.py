"""Packages that only some settings need: how one that is missing is installed."""

from __future__ import annotations

import shlex
import sys
from importlib.metadata import PackageNotFoundError, requires


def install(package: str) -> str:
    """The command that installs it where this process runs, in a version that this release takes.

    No command names this project: it need not be on any index to be installed.
    """
    try:
        wanted = [one.partition(";")[0].strip() for one in requires("tango-async") or ()]
    except PackageNotFoundError:
        wanted = []
    version = next((one for one in wanted if one.startswith(package)), package)
    return shlex.join([sys.executable, "-m", "pip", "install", version])
