"""Real Redis servers on ports of loopback: with TLS, as master and replica, and Sentinels that watch them."""

from __future__ import annotations

import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError, ResponseError

from support.places import own_port
from support.redis_server import RedisServer

PROGRAM = shutil.which("redis-server")


def server_with(directory: Path, *options: str) -> RedisServer:
    """A server on its socket and on what else the options say; not yet started."""
    directory.mkdir(parents=True, exist_ok=True)
    base = ("--bind", "127.0.0.1", "--save", "", "--appendonly", "yes")
    return RedisServer(directory, program=PROGRAM, options=(*base, *options))


def server_on(directory: Path, *options: str) -> tuple[RedisServer, int]:
    """A server on a port as well as on its socket; not yet started."""
    port = own_port()
    return server_with(directory, "--port", str(port), *options), port


@dataclass
class Watched:
    """A master, a replica of it and Sentinels, that all end with the context."""

    directory: Path
    sentinels: int = 1
    keys: Path | None = None
    """What `certificates` made: then all of them speak TLS alone, to those who have a certificate of its authority."""
    servers: dict[int, RedisServer] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    """Of the Sentinels."""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Watched:
        for name in ("one", "two"):
            follows = ("--replicaof", f"127.0.0.1 {next(iter(self.servers))}") if self.servers else ()
            port = own_port()
            door = [word for key, value in self._door(port).items() for word in (f"--{key}", value)]
            server = server_with(self.directory / name, *door, "--repl-diskless-sync-delay", "0", *follows)
            server.start()
            self.servers[port] = server
        first, second = self.servers
        self.until(lambda: self.ask(second, "INFO", "replication")["master_link_status"] == "up")
        self.ports = [own_port() for _ in range(self.sentinels)]
        quorum = self.sentinels // 2 + 1
        for port in self.ports:
            self._processes.append(self._sentinel(port, first, quorum))
        for port in self.ports:
            self.until(lambda port=port: self._knows(port))
        self._steady()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait(60)
        for server in self.servers.values():
            server.kill()

    @property
    def url(self) -> str:
        places = ",".join(f"127.0.0.1:{port}" for port in self.ports)
        return f"redis{'s' if self.keys else ''}+sentinel://{places}/tango/0"

    def master(self) -> int:
        """Its port, as the first Sentinel has it."""
        return int(self.ask(self.ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "tango")[1])

    def replicated(self) -> None:
        """Until the replica has all that the master has now."""
        master = self.master()
        (other,) = self.servers.keys() - {master}
        offset = self.ask(master, "INFO", "replication")["master_repl_offset"]
        self.until(lambda: self.ask(other, "INFO", "replication")["slave_repl_offset"] >= offset)

    def part(self) -> None:
        """The replica hears no more of its master, and keeps what it has; Sentinel does not mind for an hour."""
        master = self.master()
        (other,) = self.servers.keys() - {master}
        self.ask(other, "CONFIG", "SET", "masterauth", "wrong")
        self.ask(master, "CLIENT", "KILL", "TYPE", "replica")
        self.until(lambda: self.ask(other, "INFO", "replication")["master_link_status"] == "down")

    def lose_master(self) -> None:
        """Kills it; from then on the Sentinels notice soon."""
        self.servers[self.master()].kill()
        self._tell("SET", "tango", "down-after-milliseconds", "300")

    def _steady(self) -> None:
        """Until then the Sentinels take none for dead, however slow the machine is.

        What they do, they do soon, and also when they stood still themselves.
        """
        self._tell("SET", "tango", "down-after-milliseconds", "600000")
        for name, ms in (
            ("tilt-trigger", 600_000),
            ("tilt-period", 100),
            ("publish-period", 300),
            ("info-period", 300),
        ):
            with suppress(ResponseError):  # before Redis 7 these cannot be set
                self._tell("DEBUG", name, str(ms))

    def _tell(self, *words: str) -> None:
        for port in self.ports:
            self.ask(port, "SENTINEL", *words)

    def _sentinel(self, port: int, master: int, quorum: int) -> subprocess.Popen[bytes]:
        file = self.directory / f"sentinel-{port}.conf"
        door = "".join(f"{key} {value}\n" for key, value in self._door(port).items())
        file.write_text(
            f"{door}bind 127.0.0.1\ndir {self.directory}\nlogfile {self.directory}/sentinel-{port}.log\n"
            f"sentinel monitor tango 127.0.0.1 {master} {quorum}\nsentinel down-after-milliseconds tango 500\n"
            "sentinel failover-timeout tango 3000\n"
        )
        return subprocess.Popen([str(PROGRAM), str(file), "--sentinel"])

    def _door(self, port: int) -> dict[str, str]:
        """The settings by which a server or a Sentinel is at this port."""
        if self.keys is None:
            return {"port": str(port)}
        own = {"tls-cert-file": f"{self.keys}/server.pem", "tls-key-file": f"{self.keys}/server.key"}
        tls = {"tls-port": str(port), "tls-replication": "yes", "tls-ca-cert-file": f"{self.keys}/ca.pem"}
        return {"port": "0"} | tls | own

    def ask(self, port: int, *words: str) -> Any:
        """Of a server or a Sentinel."""
        return ask(port, *words, keys=self.keys)

    def _knows(self, port: int) -> bool:
        state = self.ask(port, "SENTINEL", "MASTER", "tango")
        return int(state["num-slaves"]) == 1 and int(state["num-other-sentinels"]) == self.sentinels - 1

    def until(self, condition: Any, within_s: float = 60.0) -> None:
        end = time.monotonic() + within_s
        while True:
            try:
                if condition():
                    return
            except (RedisError, KeyError, OSError):
                pass
            if time.monotonic() > end:
                raise AssertionError("the servers do not come to it")
            time.sleep(0.02)


def ask(port: int, *words: str, keys: Path | None = None) -> Any:
    tls: dict[str, Any] = {}
    if keys is not None:
        tls = {"ssl": True, "ssl_ca_certs": str(keys / "ca.pem")}
        tls |= {"ssl_certfile": str(keys / "client.pem"), "ssl_keyfile": str(keys / "client.key")}
    with Redis(host="127.0.0.1", port=port, socket_timeout=20, decode_responses=True, **tls) as redis:
        return redis.execute_command(*words)


def certificates(directory: Path) -> Path:
    """ca.pem, another.pem (another authority), server.pem and client.pem with their keys."""
    directory.mkdir(parents=True, exist_ok=True)

    def openssl(*words: str) -> None:
        subprocess.run(["openssl", *words], cwd=directory, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    for name in ("ca", "another"):
        openssl("req", "-x509", *new, "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
    (directory / "names").write_text("subjectAltName=IP:127.0.0.1\n")
    for name in ("server", "client"):
        openssl("req", *new[:-2], "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.csr")
        signed = ("-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names", "-days", "2")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.pem")
    return directory
