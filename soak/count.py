"""Counts, outside the service's bookkeeping, how often programs started and jobs ended.

Starts: every program appends a line to one file. The sandbox shows it that file through a `bwrap` of
the soak's own (the setting `sandbox.bwrap`), a container through a runtime of the soak's own
(`docker.runtime`, or Podman's own setting): neither is known to the code that is tried.

Ends: Redis runs with an append-only file that is never rewritten, so that every change of every key,
by whoever, stands there in order, over all its restarts.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from jobs import STARTS

BWRAP = """\
#!/bin/sh
exec bwrap --bind {file} {starts} "$@"
"""

RUNTIME = """\
#!/bin/sh
creates= bundle= before=
for word in "$@"; do
  case $before in --bundle|-b) bundle=$word ;; esac
  case $word in create) creates=yes ;; esac
  before=$word
done
if [ "$creates" ] && [ "$bundle" ]; then
  mount='{{"destination":"{starts}","type":"bind","source":"{file}","options":["rbind","rw"]}}'
  sed -i 's|"mounts":\\[|"mounts":['"$mount"',|' "$bundle/config.json"
fi
exec runc "$@"
"""


@dataclass
class Runs:
    """The runs of one job, by the names they gave themselves: when each began, and came to its last line."""

    began: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)


class Starts:
    """The file, and the two programs that show it to jobs."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "starts"
        self.bwrap = directory / "bwrap"
        self.runtime = directory / "runc"  # Podman goes by the name

    def make(self) -> None:
        self.file.touch()
        self.file.chmod(0o666)
        for path, text in ((self.bwrap, BWRAP), (self.runtime, RUNTIME)):
            path.write_text(text.format(file=self.file, starts=STARTS))
            path.chmod(0o755)

    def read(self) -> dict[str, Runs]:
        """Token → its runs."""
        runs: dict[str, Runs] = defaultdict(Runs)
        for line in self.file.read_text(errors="replace").splitlines():
            token, name, what, at = line.split()
            (runs[token].began if what == "start" else runs[token].finished)[name] = float(at)
        return runs


def commands(directory: Path) -> Iterator[list[bytes]]:
    """Every command in Redis's append-only files, in order."""
    files = sorted(directory.glob("*.incr.aof"), key=lambda path: int(path.name.split(".")[-3]))
    for path in files:
        with path.open("rb") as file:
            while command := _command(file):
                yield command


def _command(file: BinaryIO) -> list[bytes]:
    while (head := file.readline()).startswith(b"#"):
        pass  # a time stamp
    words = []
    for _ in range(int(head[1:] or 0)):
        size = int(file.readline()[1:])
        words.append(file.read(size + 2)[:size])
    return words


def ends(directory: Path, prefix: str) -> Counter[int]:
    """Job id → how often it was put among the dead."""
    dead, found = f"{prefix}dead".encode(), Counter[int]()
    for words in commands(directory):
        if words[0].upper() == b"ZADD" and words[1] == dead:
            found.update(int(member) for member in words[3::2])
    return found


def jobs_of(machines: Set[str], directory: Path, prefix: str) -> Counter[int]:
    """Job id → on how many of these machines it was."""
    key, found = f"{prefix}machines".encode(), set()
    for words in commands(directory):
        if words[0].upper() == b"HSET" and words[1] == key:
            found |= set(zip(words[2::2], words[3::2], strict=True))
    return Counter(int(job) for machine, job in found if machine.decode() in machines)
