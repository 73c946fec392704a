"""How a job reaches any machine and starts there: one `sh` script and the archive that it reads.

The machine runs SCRIPT with its standard input open. The dispatcher sends a line, the order, with the
machine's nonce and the run's limits, and then one tar, whose last member is the work directory itself.
A tar that was cut off at a member boundary unpacks without an error, so nothing runs unless `tar` has
told of that one as its last; no file's name ends with a slash. Then the script writes the mark (one
line with the nonce) as the very first bytes of the output, runs `make`, under `timeout` where nobody
outside the machine keeps the time, writes the end mark as the last ones, and exits with make's status.
The end mark carries that status, and whether memory ran out, so that a whole output tells its end
without the engine; where an engine may lose the end of an output, as one does that dies, it tells that
it has not.

Exit codes FAILED_FIRST..FAILED_LAST mean that the program did not start; the script never lets
make's own status fall among them. TIMED_OUT means that the timer ended it: `timeout` itself dies of
the KILL that it sends its group, so the script tells the two apart by the clock of /proc/uptime;
what `sh` has to say of that death is no output of the program's.
The job can forge none of this to harm anything but itself.
"""

from __future__ import annotations

import mmap
import re
import tarfile
from collections.abc import AsyncGenerator, AsyncIterator, Sequence

from ..errors import InputChanged
from ..machine import Exit, InputFile, Limits

WORK_DIR = "/home/autograde/autolab"
"""Where Tango's jobs find their files."""

HOME = "/home/autograde"

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

FAILED_FIRST, FAILED_LAST = 90, 99
TIMED_OUT = 124
KILLED = 137

HEAD_BYTES = 512
"""Enough of the output to find the mark, or to say why there is none."""

REASONS = {
    90: "the work directory cannot be made",
    91: "the files could not be unpacked",
    92: "the files arrived incompletely",
    93: "make or timeout is not installed in the image",
    94: "a limit could not be set",
    95: "the machine cannot write to its dispatcher's pipe",
}

SCRIPT = r"""
nonce=$1 dir=$2
if [ "$3" ]; then
  [ -w "$3" ] || exit 95
  exec >"$3" 2>&1
fi
cd "$dir" 2>/dev/null || { mkdir -p "$dir" && cd "$dir"; } 2>/dev/null || exit 90
read -r seen limit_s blocks processes && [ "$seen" = "$nonce" ] || exit 92
said=$(tar -xvmf - 2>&1) || { echo "$said"; exit 91; }
case $said in
  ./ | *"
./") ;;
  *) exit 92 ;;
esac
command -v make >/dev/null && command -v timeout >/dev/null || exit 93
ulimit -c 0; ulimit -n 4096 2>/dev/null; ulimit -f "$blocks" || exit 94
if [ "$processes" -gt 0 ]; then
  ulimit -p "$processes" 2>/dev/null || ulimit -u "$processes" 2>/dev/null || exit 94
fi
clock() { read -r up rest </proc/uptime; now=${up%.*}${up#*.}; }
clock; begun=$now
exec </dev/null 2>/dev/null
echo "tango-started $nonce" || exit 95
(
  if [ "$limit_s" -gt 0 ]; then exec timeout -s KILL "$limit_s" make 2>&1; else exec make 2>&1; fi
)
code=$?
if [ $code -eq 137 ] || [ $code -eq 124 ]; then
  clock
  if [ "$limit_s" -gt 0 ] && [ $((now - begun)) -ge $((limit_s * 100 - 5)) ]; then code=124; else code=137; fi
fi
if [ $code -ge 90 ] && [ $code -le 99 ]; then code=1; fi
killed=?
for file in /sys/fs/cgroup/memory/memory.oom_control /sys/fs/cgroup/memory.events; do
  while read -r name count; do [ "$name" = oom_kill ] && killed=$count; done <"$file"
done
echo "tango-ended $nonce $code $killed"
exit $code
"""
"""The third argument is the pipe that takes the output, where the engine does not."""

_BLOCK = 512


def command(nonce: str, output: str = "") -> list[str]:
    """The machine's main process; it writes to `output`, or to where its engine reads."""
    return ["/bin/sh", "-c", SCRIPT, "tango", nonce, WORK_DIR, output]


def mark(nonce: str) -> bytes:
    """The first bytes of the output of every run that started."""
    return f"tango-started {nonce}\n".encode()


async def archive(
    files: Sequence[InputFile], nonce: str, limits: Limits, *, processes: int, timed: bool = True
) -> AsyncGenerator[bytes, None]:
    """What a machine reads: the order and the tar. `processes` is 0 where the engine limits them better; not `timed`,
    the program is ended from outside.

    Raises InputChanged if a file is not as long as it was said to be: the last member is then never sent.
    """
    yield f"{nonce} {limits.timeout_s if timed else 0} {-(-limits.file_bytes // _BLOCK)} {processes}\n".encode()
    for file in files:
        yield _header(file.name, file.size)
        sent = 0
        async for chunk in file.chunks():
            sent += len(chunk)
            yield chunk
        if sent != file.size:
            raise InputChanged(f"{file.name}: {sent} of {file.size} bytes")
        if sent % _BLOCK:
            yield bytes(_BLOCK - sent % _BLOCK)
    yield _WHOLE


def _header(name: str, size: int) -> bytes:
    info = tarfile.TarInfo(name)
    info.size = size
    info.mode = 0o600
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8")


def _last() -> bytes:
    info = tarfile.TarInfo("./")
    info.type, info.mode = tarfile.DIRTYPE, 0o755
    return info.tobuf(tarfile.GNU_FORMAT) + bytes(2 * _BLOCK)


_WHOLE = _last()


def end_mark(nonce: str) -> bytes:
    """How the line begins that is written after the program's end; what left-over processes say may still follow it.

    Then come the exit code and how many processes were killed for want of memory, or `?`.
    """
    return f"tango-ended {nonce} ".encode()


_RECORD = re.compile(rb"(\d{1,3}) (\d{1,9}|\?)\n")
_END_MARK = re.compile(rb"tango-ended ([^ \n]*) " + _RECORD.pattern)
"""Of any nonce; making one for each job's own would take longer than all else that is done to its output."""
_RECORD_BYTES = 14
"""The longest end of an end mark."""


def end_of(output: bytes | mmap.mmap, nonce: str) -> tuple[int, bool | None] | None:
    """The exit code and whether memory ran out (None: not known), as the last end mark in `output` says; or None."""
    last = end_mark(nonce)
    at = output.rfind(last)
    told = None if at < 0 else _RECORD.match(output[at + len(last) :][:_RECORD_BYTES])
    if told is None:
        return None
    return int(told[1]), None if told[2] == b"?" else int(told[2]) > 0


async def after_mark(output: AsyncIterator[bytes], nonce: str) -> AsyncGenerator[bytes, None]:
    """The program's own output: `output` without its marks; nothing if the first mark never came."""
    first, last = mark(nonce), end_mark(nonce)

    def kept(found: re.Match[bytes]) -> bytes:
        return b"" if found[0].startswith(last) else found[0]

    begun, held = False, b""
    async for chunk in output:
        held += chunk
        if not begun:
            if len(held) < len(first):
                continue
            if not held.startswith(first):
                return
            begun, held = True, held[len(first) :]
        held = _END_MARK.sub(kept, held)
        keep = _may_begin(held, last)
        if said := held[: len(held) - keep]:
            yield said
        held = held[len(held) - keep :]
    if begun and held:
        yield held


def _may_begin(data: bytes, last: bytes) -> int:
    """How many of the last bytes may be the beginning of an end mark."""
    at = data.rfind(last, -len(last) - _RECORD_BYTES)
    if at >= 0:
        return len(data) - at
    return next((n for n in range(min(len(last) - 1, len(data)), 0, -1) if data.endswith(last[:n])), 0)


def ended(code: int, *, out_of_memory: bool = False) -> Exit:
    """The meaning of an exit code of a run that started."""
    return Exit(code=code, timed_out=code == TIMED_OUT, out_of_memory=out_of_memory)


def why_not_started(code: int, said: bytes = b"") -> str:
    """A sentence for a run whose mark never came."""
    reason = REASONS.get(code, f"the machine ended with status {code} before the program began")
    detail = said[:300].decode(errors="replace").strip()
    return f"{reason}: {detail}" if detail else reason
