"""What runs on a VM, beside the job: plain `sh`, coreutils and util-linux, as the user that SSH logs in.

A job's directory on the VM, removed with it, holds all that a later dispatcher needs:

    input    a FIFO: the archive, on its way from the connection to the bootstrap
    pipe     a FIFO: the job's output, on its way; a job that held a file could truncate or grow it
    output   … and where it is kept, up to a size
    alive    locked as long as the supervisor lives; so its end can be waited for, whoever asks
    session  the supervisor's process id, which is that of its session
    exit     the exit code and a newline

The supervisor is in a session of its own and needs no connection. The job runs in namespaces below it:
its own processes, temporary file systems of bounded size, and no network if it is to have none. When
the first process there ends, the kernel ends all others.

Where the VM has Tango's `autodriver`, that sets the limits and runs make, and shows the output only
at the end.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..machine import MachineSpec
from .bootstrap import HOME, PATH, command
from .collector import collected

GUARD_S = 15
"""How much later than its deadline the supervisor ends a run whose own timer was stopped."""
OVERTIME_S = 60.0
"""How much later a run may be heard to have ended, beyond the longest that its VM may be out of reach: it is no
fault of the job's, and the supervisor ends it in time all the same."""
OUTPUT_SLACK_BYTES = 4 * 1024**2
"""How much more output is kept than what ends a job, so that the dispatcher sees which one it was."""
FALLBACK_UID = 64_123
"""The job's user where the VM has none of the name."""
NO_SUCH_RUN = 3
"""FOLLOW and WAIT end so if there is no such directory, or nothing was ever started in it."""

_TOOLS = "make tar timeout setsid flock tail mkfifo"
_ROOT_TOOLS = "unshare setpriv mount"

FACTS = r"""
user=$1; shift
if [ "$(id -u)" = 0 ]; then root=yes
elif sudo -n true 2>/dev/null; then root=sudo
else root=no; fi
echo "root $root"
[ $root = no ] || set -- "$@" @ROOT_TOOLS@
for tool; do command -v "$tool" >/dev/null || echo "missing $tool"; done
driver=$(command -v autodriver) && [ -u "$driver" ] && echo "autodriver $driver"
uid=$(id -u "$user" 2>/dev/null) && gid=$(id -g "$user") || { uid=@UID@ gid=@UID@; }
echo "user $uid $gid"
echo "login $(id -un)"
""".replace("@ROOT_TOOLS@", _ROOT_TOOLS).replace("@UID@", str(FALLBACK_UID))
"""What the VM offers: one word a line, and its values."""

RECEIVE = r"""
dir=$1 supervise=$2; shift 2
umask 022
mkdir -p "${dir%/*}" && chmod 711 "${dir%/*}" && mkdir -m 700 "$dir" && cd "$dir" || exit 1
mkfifo input pipe && chmod 666 pipe && : >output || exit 1
exec 6>alive && flock -x 6 || exit 1
exec 3<>input 4<input 5>input 3>&-
setsid --fork sh -c "$supervise" tango-job "$PWD" "$@" <&4 >/dev/null 2>&1 4<&- 5>&-
exec 4<&- 6>&-
cat >&5
exit 0
"""
"""Starts the supervisor and hands it what comes in. Both ends of `input` are open before it is started, so
that neither waits for the other; when this ends, however it does, so does the bootstrap's input. With `&` the
supervisor, and so the job, would have INT and QUIT ignored."""

SUPERVISE = r"""
dir=$1 output_blocks=$2 guard_s=$3; shift 3
cd "$dir" && echo $$ >session || exit
echo -500 2>/dev/null >/proc/$$/oom_score_adj
""" + collected('(exec "$@" 3>&- 6>&-) >&3 2>&3')

ENTER = r"""
uid=$1 gid=$2 disk=$3 home=$4 path=$5; shift 5
mkdir -p "$home"
mount -t tmpfs -o "size=$disk,mode=700,uid=$uid,gid=$gid,nosuid,nodev" tango "$home" || exit 94
for shared in /tmp /var/tmp /dev/shm; do
  mount -t tmpfs -o "size=$disk,mode=1777,nosuid,nodev" tango "$shared" || exit 94
done
ip link set lo up 2>/dev/null
echo 500 >/proc/self/oom_score_adj
cd /
exec 3>&2 2>/dev/null  # what this shell has to say of its death is no output of the job's
(
  exec 2>&3 3>&-
  exec setpriv --reuid "$uid" --regid "$gid" --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all \
    env -i PATH="$path" HOME="$home" USER=autograde LOGNAME=autograde LC_ALL=C.UTF-8 "$@"
)
exit $?
"""
"""The first process of the job's namespaces: root's, so that nothing in there can end or follow it."""

DRIVE = r"""
driver=$1 nonce=$2 output_bytes=$3
mkdir autolab && cd autolab || exit 90
read -r seen limit_s blocks processes && [ "$seen" = "$nonce" ] || exit 92
said=$(tar -xvmf - 2>&1) || { echo "$said"; exit 91; }
case $said in
  ./ | *"
./") cd .. ;;
  *) exit 92 ;;
esac
exec </dev/null 2>/dev/null
"$driver" -u "$processes" -f $((blocks * 512)) -t "$limit_s" -o "$output_bytes" autolab | {
  IFS= read -r said
  case $said in
    "Autodriver: Job exited with status "*) code=${said##* } ;;
    "Autodriver: Job timed out after "*) code=124 ;;
    *) echo "$said"; cat; exit 94 ;;
  esac
  echo "tango-started $nonce"
  [ "$code" = 124 ] && [ "${said#*exited}" != "$said" ] && code=1
  [ "$code" -ge 90 ] && [ "$code" -le 99 ] && code=1
  cat
  echo "tango-ended $nonce $code ?"
  exit "$code"
}
"""
"""The bootstrap's part where `autodriver` runs make: it says how the job ended before it shows its output."""

FOLLOW = r"""
cd "$1" 2>/dev/null && [ -f alive ] || exit 3
watch=$(flock -s alive true </dev/null >/dev/null 2>&1 & echo $!)
tail -c "+$2" -s 0.05 -f --pid="$watch" output
wc -c <output >&2
"""
"""The output from one byte on, until the supervisor has ended; then its size, on the standard error."""

WAIT = r"""
cd "$1" 2>/dev/null && [ -f alive ] || exit 3
flock -s alive cat exit 2>/dev/null
{ wc -c; head -c 4096 output; } <output >&2
"""
"""The exit record, when the supervisor has ended, and on the standard error a line with the output's size, and its
beginning. Who knows the size need not wait for FOLLOW, which looks for the end now and then only."""

STOP = r"""
cd "$1" 2>/dev/null || exit 0
[ -f session ] && ! flock -sn alive true && kill -KILL "-$(cat session)" 2>/dev/null
flock -s -w 5 alive true || exit 1
dir=$PWD; cd / && rm -rf "$dir"
"""

CLEAN = r"""
user=$1 base=$2
for dir in "$base"/*/; do [ -e "$dir/alive" ] && ! flock -sn "$dir/alive" true && exit 1; done
rm -rf "$base"
for stat in /proc/[0-9]*/status; do
  while read -r name value rest; do
    [ "$name" = Uid: ] && [ "$value" = "$user" ] && { pid=${stat#/proc/}; kill -KILL "${pid%/*}"; break; }
  done <"$stat"
done 2>/dev/null
find /tmp /var/tmp /dev/shm -xdev -user "$user" -delete 2>/dev/null
! find /tmp /var/tmp /dev/shm -xdev -user "$user" 2>/dev/null | grep -q .
"""
"""Leaves nothing of the job's user for the next job. Fails if a run still lives."""


@dataclass(frozen=True, slots=True)
class Facts:
    """What a VM said of itself."""

    root: str
    """`yes`, `sudo` or `no`: how commands become root's."""
    missing: tuple[str, ...]
    autodriver: str
    """Its path, or ""."""
    uid: int
    gid: int
    login: str

    @classmethod
    def read(cls, said: bytes) -> Facts:
        """Raises ValueError if the VM said something else."""
        words = [line.split() for line in said.decode(errors="replace").splitlines()]
        found = {line[0]: line[1:] for line in words if len(line) > 1}
        try:
            uid, gid = map(int, found["user"])
            missing = tuple(line[1] for line in words if line[:1] == ["missing"])
            driver = found.get("autodriver", [""])[0]
            return cls(found["root"][0], missing, driver, uid, gid, found["login"][0])
        except (KeyError, IndexError, ValueError) as e:
            raise ValueError(f"the VM answered {said[:200]!r}") from e

    @property
    def drives(self) -> bool:
        """Whether autodriver runs the jobs: it becomes root by itself, and refuses to be started by root."""
        return bool(self.autodriver) and self.root != "yes"

    @property
    def base(self) -> str:
        """Where the runs' directories are: of the user who logs in, or root's."""
        return "tango-runs" if self.drives else "/var/lib/tango-runs"


def facts(user: str) -> list[str]:
    return _sh(FACTS, user, *_TOOLS.split())


def receive(facts: Facts, spec: MachineSpec, run: str, nonce: str, *, output_bytes: int, guard_s: int) -> list[str]:
    """Takes the archive on its standard input, and the job starts at its end."""
    blocks = (output_bytes + OUTPUT_SLACK_BYTES) // 512
    if facts.drives:
        job = _sh(DRIVE, facts.autodriver, nonce, str(output_bytes + OUTPUT_SLACK_BYTES))
        if not spec.network:
            again = ["setpriv", "--reuid", facts.login, "--regid", facts.login, "--init-groups"]
            job = ["sudo", "-n", "unshare", "--net", *again, *job]
    else:
        network = [] if spec.network else ["--net"]
        limits = [str(facts.uid), str(facts.gid), str(spec.disk_bytes), HOME, PATH]
        bootstrap = command(nonce)
        namespaces = ["unshare", "--fork", "--kill-child", "--pid", "--mount-proc", "--ipc", *network]
        job = [*namespaces, *_sh(ENTER, *limits, *bootstrap)]
    return _ours(facts, RECEIVE, run, SUPERVISE, str(blocks), str(guard_s), *job)


def follow(facts: Facts, run: str, offset: int) -> list[str]:
    return _ours(facts, FOLLOW, run, str(offset + 1))


def wait(facts: Facts, run: str) -> list[str]:
    return _ours(facts, WAIT, run)


def stop(facts: Facts, run: str) -> list[str]:
    return _ours(facts, STOP, run)


def clean(facts: Facts) -> list[str]:
    return _ours(facts, CLEAN, str(facts.uid), facts.base)


def rooted(facts: Facts, script: str, *arguments: str) -> list[str]:
    """As root, if that can be had; fails otherwise."""
    started = _sh(script, *arguments)
    return started if facts.root == "yes" else ["sudo", "-n", *started]


def _ours(facts: Facts, script: str, *arguments: str) -> list[str]:
    started = _sh(script, *arguments)
    return ["sudo", "-n", *started] if facts.root == "sudo" and not facts.drives else started


def _sh(script: str, *arguments: str) -> list[str]:
    return ["env", f"PATH={PATH}", "LC_ALL=C", "/bin/sh", "-c", script, "tango", *arguments]
