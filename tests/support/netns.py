"""Docker engines that are hosts of their own: each a real dockerd in its namespaces, behind a link that can be cut.

The link is a pair of veth devices, one end in the engine's network namespace; it goes with the namespace,
also when the test run is killed. The engine answers there with TLS, on request without, and by sshd.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from pathlib import Path

from support.engine import WITHIN_S, Lacking, PrivateEngine, _child, load_image

TLS_PORT, PLAIN_PORT = 2376, 2375
SSHD = "/usr/sbin/sshd"
NET = "10.231.0.0/16"
"""All links, so that engines reach what listens at our end of any."""

_numbers = count(os.getpid() * 8)


class Certificates:
    """An authority, and what it has signed: ca.pem, client-*.pem, and a pair for each engine's address."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        self.ca, self.cert, self.key = (directory / f"{name}.pem" for name in ("ca", "client", "client-key"))
        _openssl(directory, "req", "-x509", *_EC, "-keyout", "ca-key.pem", "-out", "ca.pem", "-subj", "/CN=authority")
        self.sign("client", "extendedKeyUsage=clientAuth")

    def sign(self, name: str, extension: str) -> None:
        """NAME.pem and NAME-key.pem."""
        d = self.directory
        _openssl(d, "req", "-new", *_EC, "-keyout", f"{name}-key.pem", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (d / f"{name}.ext").write_text(extension)
        signer = ["-CA", "ca.pem", "-CAkey", "ca-key.pem", "-CAcreateserial", "-extfile", f"{name}.ext"]
        _openssl(d, "x509", "-req", "-in", f"{name}.csr", *signer, "-out", f"{name}.pem", "-days", "2")


_EC = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


def _openssl(directory: Path, *words: str) -> None:
    subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)


class RemoteEngine(PrivateEngine):
    """An engine behind a link. `address` is its own, `gateway` ours."""

    def __init__(self, certificates: Certificates | None = None) -> None:
        super().__init__()
        _sweep_routes()
        self.certificates = certificates
        self.configure()
        self.link = self._net = self.gateway = self.address = ""
        self._sshd: subprocess.Popen[bytes] | None = None

    def configure(self, **options: object) -> None:
        """For the next start."""
        (self.directory / "daemon.json").write_text(json.dumps({"insecure-registries": [NET], **options}))

    @staticmethod
    def missing() -> str:
        absent = [p for p in ("ip", "openssl") if shutil.which(p) is None]
        return PrivateEngine.missing() or (f"not installed: {', '.join(absent)}" if absent else "")

    @property
    def url(self) -> str:
        """As `docker.hosts` takes it."""
        return f"tcp://{self.address}:{TLS_PORT if self.certificates else PLAIN_PORT}"

    def _hold(self) -> None:
        super()._hold()
        assert self._holder is not None
        self._inside = str(_child(self._holder.pid))
        self._take_net()
        _ip("addr", "add", f"{self.gateway}/30", "dev", self.link)
        _ip("link", "set", self.link, "up")
        # Without it, what is for an engine that is gone would go out into the world.
        _ip("route", "replace", "blackhole", self._net, "metric", "9999")
        reach = f"route add {NET} via {self.gateway}"
        for words in (f"addr add {self.address}/30 dev eth0", "link set eth0 up", "link set lo up", reach):
            subprocess.run([*self._enter, "ip", *words.split()], check=True)

    def _take_net(self) -> None:
        """The first that no other test run has: the link of its name can be made once only."""
        for number in (next(_numbers) for _ in range(256)):
            a, b = number // 64 % 256, number % 64 * 4
            self.link, self._net = f"tg{a}-{b}", f"10.231.{a}.{b}/30"
            self.gateway, self.address = f"10.231.{a}.{b + 1}", f"10.231.{a}.{b + 2}"
            peer = ["peer", "name", "eth0", "netns", self._inside]
            made = subprocess.run(["ip", "link", "add", self.link, "type", "veth", *peer], capture_output=True)
            if made.returncode == 0:
                return
        raise RuntimeError(made.stderr.decode())

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", "--target", self._inside, "--net", "--mount", "--pid"]

    def _command(self) -> list[str]:
        command = [*super()._command(), "-H", self.url]
        if self.certificates is None:
            return command
        d = self.certificates.directory
        if not (d / f"{self.address}.pem").exists():
            self.certificates.sign(self.address, f"subjectAltName=IP:{self.address}")
        files = ["--tlscacert", f"{d}/ca.pem", "--tlscert", f"{d}/{self.address}.pem"]
        return [*command, "--tlsverify", *files, "--tlskey", f"{d}/{self.address}-key.pem"]

    def cut(self) -> None:
        """Nothing comes through, and nobody is told so."""
        subprocess.run([*self._enter, "ip", "link", "set", "eth0", "down"], check=True)

    def heal(self) -> None:
        for words in ("link set eth0 up", f"route replace {NET} via {self.gateway}"):
            subprocess.run([*self._enter, "ip", *words.split()], check=True)

    def start_sshd(self, authorized_key: str, *more: str) -> str:
        """The host's public key. `more` goes before all else in its configuration, where the first word counts."""
        d = self.directory
        if not (d / "host_key").exists():
            subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(d / "host_key")], check=True)
        (d / "authorized").write_text(authorized_key)
        options = [f"HostKey {d}/host_key", f"AuthorizedKeysFile {d}/authorized", f"ListenAddress {self.address}"]
        options += ["StrictModes no", "UsePAM no", "PidFile none", "PermitRootLogin prohibit-password", "MaxSessions 4"]
        (d / "sshd_config").write_text("\n".join([*more, *options]) + "\n")
        subprocess.run([*self._enter, "mkdir", "-p", "/run/sshd"], check=True)
        with (d / "sshd-log").open("ab") as log:
            command = [*self._enter, SSHD, "-D", "-e", "-f", str(d / "sshd_config")]
            self._sshd = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        end = time.monotonic() + WITHIN_S
        while time.monotonic() < end:
            try:
                socket.create_connection((self.address, 22), timeout=1).close()
                return (d / "host_key.pub").read_text().strip()
            except OSError:
                time.sleep(0.05)
        raise RuntimeError((d / "sshd-log").read_text()[-500:])

    def stop_sshd(self) -> None:
        """With all its connections."""
        if self._sshd is not None:
            if self._sshd.poll() is None:
                listener = _child(self._sshd.pid)
                connections = Path(f"/proc/{listener}/task/{listener}/children").read_text().split()
                for pid in (listener, *map(int, connections)):
                    with suppress(ProcessLookupError):  # a connection that ended meanwhile
                        os.kill(pid, 9)
            self._sshd.wait(WITHIN_S)
            self._sshd = None

    def stop(self) -> None:
        self.stop_sshd()
        super().stop()
        for words in (["link", "del", self.link], ["route", "del", "blackhole", self._net]):
            subprocess.run(["ip", *words], capture_output=True)


@contextmanager
def two_engines(directory: Path) -> Iterator[list[RemoteEngine]]:
    """With TLS and the grading image. Raises Lacking."""
    if missing := RemoteEngine.missing():
        raise Lacking(f"there can be no engines of our own: {missing}")
    certificates = Certificates(directory / "tls")
    with ExitStack() as stack:
        engines = []
        for _ in range(2):
            engine = RemoteEngine(certificates)
            stack.callback(engine.stop)
            try:
                engine.start()
            except RuntimeError as e:
                raise Lacking(f"there can be no engines of our own: {e}") from e
            load_image(engine)
            engines.append(engine)
        yield engines


def _sweep_routes() -> None:
    """What test runs left that were killed: links go by themselves, and this does not. A route comes after its link."""
    routes = subprocess.run(["ip", "route"], check=True, capture_output=True, text=True).stdout.splitlines()
    linked = {route.split()[0] for route in routes if " dev tg" in route}
    for words in (route.split() for route in routes if route.startswith("blackhole 10.231.")):
        if words[1] not in linked:
            subprocess.run(["ip", "route", "del", "blackhole", words[1]], capture_output=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
