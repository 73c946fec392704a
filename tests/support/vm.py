"""Virtual machines for tests: a real sshd with its own processes, files and users, on a loopback address.

Looks like a freshly booted VM from the outside; `boot` does of cloud-init's work what our user data asks for.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from email import message_from_string
from itertools import cycle
from pathlib import Path

from support.places import own_uids

SSHD = "/usr/sbin/sshd"
_uids = cycle(range(1000))

BOOT = r"""
set -e
dir=$1 root=$1/root
mount --make-rprivate /
mount -t tmpfs -o size=512m,mode=755 tmpfs "$root"
cd "$root"
mkdir -p usr etc/ssh etc/pam.d dev proc sys tmp run/sshd var/lib var/log var/tmp home root old
chmod 700 root; chmod 1777 tmp var/tmp
mount --bind /usr usr && mount -o remount,bind,ro usr
mount -t tmpfs -o mode=755 tmpfs usr/local/sbin
for link in bin sbin lib lib32 lib64 libx32; do [ ! -L "/$link" ] || cp -a "/$link" .; done
cp -a /etc/ld.so.cache /etc/alternatives /etc/nsswitch.conf etc/
for device in null zero full random urandom tty; do : >"dev/$device"; mount --bind "/dev/$device" "dev/$device"; done
mkdir dev/shm && mount -t tmpfs -o mode=1777 tmpfs dev/shm
ln -s /proc/self/fd dev/fd; ln -s fd/0 dev/stdin; ln -s fd/1 dev/stdout; ln -s fd/2 dev/stderr
cp -a "$dir"/etc/. etc/
cp -a "$dir"/root-home/. root/
mkdir home/autolab && cp -a "$dir"/root-home/. home/autolab && chown -R @LOGIN@ home/autolab
cp -p "$dir"/sbin/* usr/local/sbin/
while read -r here there; do : >".$there"; mount --bind "$here" ".$there"; done <"$dir/shared"
mount -t proc proc proc
pivot_root . old
umount -l /old && rmdir /old
hostname "$2"
shift 2
cd /
for command; do sh -c "$command" </dev/null >>/var/log/boot 2>&1 || true; done
while :; do [ -e /run/away ] && sleep 0.1 || /usr/sbin/sshd -D -e 2>>/var/log/sshd || :; done &
wait
"""
"""Ends with the file system of its own as the only one to be seen."""
LOGIN = 71_000
BOOT = BOOT.replace("@LOGIN@", str(LOGIN))

IP = '#!/bin/sh\n[ "$1" = link ] || echo "$*" >/run/ip\n'
SHUTDOWN = '#!/bin/sh\n[ "$1" = -h ] || exit 1\necho "$*" >/run/shutdown\n(sleep $((${2#+} * 60)); kill -KILL 1) &\n'


def host_key(directory: Path, name: str = "host") -> tuple[str, str]:
    """A new key pair, private and public."""
    path = directory / f"{name}-{time.monotonic_ns()}"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", str(path)], check=True)
    return path.read_text(), path.with_suffix(".pub").read_text().strip()


def _parts(user_data: str) -> list[str]:
    if "mime-version:" not in user_data.lower():
        return [user_data]
    parts = message_from_string(user_data).walk()
    return [part.get_payload(decode=True).decode() for part in parts if not part.is_multipart()]  # type: ignore[union-attr]


@dataclass
class SshVm:
    """One VM. Starts when told to, and ends with this process."""

    address: str
    authorized_key: str
    user_data: str = ""
    hostname: str = "vm"
    autodriver: Path | None = None
    """The program of that name. With it `autolab` logs in, who may become nobody else; else root does."""
    shared: dict[Path, str] = field(default_factory=dict)
    """Files of this host, and where the VM sees them."""
    directory: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="vm-")))
    process: subprocess.Popen[bytes] | None = None
    public_key: str = ""
    """The host's, once it was started."""

    @staticmethod
    def missing() -> str:
        """What this machine lacks for VMs and for those who make them; empty if nothing."""
        if os.geteuid() != 0:
            return "not root"
        programs = {SSHD: "openssh-server", "ssh-keygen": "openssh-client", "unshare": "util-linux"}
        if absent := [package for program, package in programs.items() if shutil.which(program) is None]:
            return f"not installed: apt-get install {' '.join(absent)}"
        packages = ("moto", "aiobotocore", "asyncssh")
        if unfound := [name for name in packages if importlib.util.find_spec(name) is None]:
            return f"not installed: pip install {' '.join(unfound)}"
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.14.0.1", 22))
            except OSError as e:
                return f"port 22 of the loopback addresses: {e.strerror}; an sshd that listens on all of them?"
        return ""

    def start(self) -> None:
        for part in ("root", "etc/ssh", "root-home/.ssh", "sbin"):
            (self.directory / part).mkdir(parents=True)
        private, self.public_key, commands = self._cloud_init()
        etc, uid = self.directory / "etc", own_uids() + next(_uids)
        users = ["root:x:0:0:root:/root:/bin/sh", "sshd:x:100:65534::/run/sshd:/usr/sbin/nologin"]
        users += [
            f"autograde:x:{uid}:{uid}::/home/autograde:/bin/sh",
            f"autolab:x:{LOGIN}:{LOGIN}::/home/autolab:/bin/sh",
        ]
        (etc / "passwd").write_text("\n".join(users) + "\n")
        (etc / "group").write_text(f"root:x:0:\nnogroup:x:65534:\nautograde:x:{uid}:\nautolab:x:{LOGIN}:\n")
        (etc / "shadow").write_text("root:*:1::::::\nautolab:*:1::::::\n")
        (etc / "shadow").chmod(0o600)
        (etc / "ssh/ssh_host_ed25519_key").write_text(private)
        (etc / "ssh/ssh_host_ed25519_key").chmod(0o600)
        (etc / "ssh/sshd_config").write_text(
            f"ListenAddress {self.address}\nHostKey /etc/ssh/ssh_host_ed25519_key\nUsePAM no\nStrictModes no\n"
            "PasswordAuthentication no\nAuthorizedKeysFile .ssh/authorized_keys\nPidFile none\n"
        )
        (self.directory / "root-home/.ssh/authorized_keys").write_text(self.authorized_key + "\n")
        for name, text in {"shutdown": SHUTDOWN, "ip": IP}.items():
            (self.directory / "sbin" / name).write_text(text)
            (self.directory / "sbin" / name).chmod(0o755)
        if self.autodriver is not None:
            shutil.copy(self.autodriver, self.directory / "sbin/autodriver")
            (self.directory / "sbin/autodriver").chmod(0o4755)
        (self.directory / "shared").write_text("".join(f"{here} {there}\n" for here, there in self.shared.items()))
        spaces = ["unshare", "--mount", "--pid", "--uts", "--ipc", "--fork", "--kill-child"]
        # A VM's routes would be the host's. It ends with the thread that starts it, also when that is killed.
        fewer = ["setpriv", "--pdeathsig", "KILL", "--bounding-set", "-net_admin", "--inh-caps", "-net_admin"]
        boot = ["sh", "-c", BOOT, "vm", str(self.directory), self.hostname, *commands]
        with (self.directory / "log").open("wb") as log:
            self.process = subprocess.Popen(
                [*fewer, *spaces, *boot], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
            )  # fmt: skip

    def _cloud_init(self) -> tuple[str, str, Sequence[str]]:
        """The host key, and what is run once; of two parts with the same key the later one's value holds."""
        config, commands = {}, []
        for part in _parts(self.user_data):
            if part.startswith("#cloud-config\n"):
                config |= json.loads(part.partition("\n")[2])
            elif part.startswith("#!/bin/sh\n"):
                commands.append(part)
        keys = config.get("ssh_keys")
        private, public = (keys["ed25519_private"], keys["ed25519_public"]) if keys else host_key(self.directory)
        return private, public, [*commands, *config.get("runcmd", [])]

    def wait(self, patience_s: float = 60.0) -> None:
        end = time.monotonic() + patience_s
        while time.monotonic() < end:
            try:
                with socket.create_connection((self.address, 22), timeout=1) as connection:
                    if connection.recv(4) == b"SSH-":
                        return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"{self.address} did not come up: {(self.directory / 'log').read_text()}")

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def _init(self) -> str:
        """The process id of its first process. Raises OSError or IndexError if it has none."""
        assert self.process is not None
        return Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()[0]

    @property
    def busy(self) -> bool:
        """Whether a job runs there."""
        with suppress(OSError, IndexError):
            runs = Path(f"/proc/{self._init()}/root/var/lib/tango-runs")
            return any(not (run / "exit").exists() for run in runs.iterdir())
        return False

    def sh(self, script: str) -> str:
        """Runs a command as root on the VM, without its sshd."""
        enter = ["nsenter", "--target", self._init(), "--mount", "--pid", "--root", "--wd=/", "sh", "-c", script]
        return subprocess.run(enter, check=True, capture_output=True, text=True).stdout

    def cut(self) -> None:
        """Kills every connection; new ones are taken."""
        self.sh("pkill -KILL -x sshd")

    def away(self) -> None:
        """Nobody reaches it any more, and it runs on."""
        self.sh("touch /run/away; pkill -KILL -x sshd")

    def hold(self) -> None:
        """From now on connections are taken but nothing passes, as when a network goes silent."""
        self.sh("pkill -STOP -x sshd")

    def release(self) -> None:
        self.sh("pkill -CONT -x sshd")

    def kill(self) -> None:
        if self.process is not None:
            with suppress(ProcessLookupError):  # another thread may be about to reap it
                if self.process.poll() is None:
                    os.kill(self.process.pid, signal.SIGKILL)
            self.process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)
