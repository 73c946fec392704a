"""How a supervisor collects what its job says: a part of its `sh`, on this host and on a VM.

Before it, the supervisor is in the machine's directory, with `pipe` there, and has set two variables:

    output_blocks  how much is kept, in blocks of 512 bytes
    guard_s        seconds the program may take; a file `guard` tells it where it is known only later
"""

from __future__ import annotations

SCRIPT = r"""
exec 3<>pipe 4<pipe
(
  exec </dev/null 3>&- 6>&-
  ulimit -f "$output_blocks"
  if IFS= read -r first <&4; then printf '%s\n' "$first"; else printf %s "$first"; fi
  [ -f guard ] && read -r guard_s <guard
  timeout -s KILL "$guard_s" cat <&4
  case $? in
    0) exit ;;
    137) echo 124 >exit ;;
    153) echo 137 >exit ;;
  esac
  kill -KILL 0
) >>output 2>/dev/null &
collector=$!
exec 4<&-
@JOB@
code=$?
exec </dev/null 3>&-
wait "$collector"
echo "$code" >exit
"""
"""Ends when all who hold the job's output have. The collector keeps the program's time, from the mark on, which is the
first line. 137 is the guard's end, 153 too much output; any other failure leaves no record, so that the machine counts
as lost.

The job is not the asynchronous part: `sh` would have set INT and QUIT to ignored there, and a job cannot undo that."""


def collected(job: str) -> str:
    """Around the fragment that runs the job, its output to descriptor 3; 6, if it is open, is the supervisor's own."""
    return SCRIPT.replace("@JOB@", job.strip())
