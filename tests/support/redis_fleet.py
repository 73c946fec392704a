"""Real Redis servers on ports of loopback: with TLS, as master and replica, and Sentinels that watch them."""

from __future__ import annotations

import shutil
import socket
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from redis import Redis
from redis.exceptions import RedisError

from support.redis_server import RedisServer

PROGRAM = shutil.which("redis-server")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def server_on(directory: Path, *options: str) -> tuple[RedisServer, int]:
    """A server on a port as well as on its socket; not yet started."""
    directory.mkdir(parents=True, exist_ok=True)
    port = free_port()
    base = ("--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "yes")
    return RedisServer(directory, program=PROGRAM, options=(*base, *options)), port


@dataclass
class Watched:
    """A master, a replica of it and Sentinels, that all end with the context."""

    directory: Path
    sentinels: int = 1
    servers: dict[int, RedisServer] = field(default_factory=dict)
    ports: list[int] = field(default_factory=list)
    """Of the Sentinels."""
    _processes: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def __enter__(self) -> Watched:
        for name in ("one", "two"):
            follows = ("--replicaof", f"127.0.0.1 {next(iter(self.servers))}") if self.servers else ()
            server, port = server_on(self.directory / name, "--repl-diskless-sync-delay", "0", *follows)
            server.start()
            self.servers[port] = server
        first, second = self.servers
        self.until(lambda: ask(second, "INFO", "replication")["master_link_status"] == "up")
        self.ports = [free_port() for _ in range(self.sentinels)]
        quorum = self.sentinels // 2 + 1
        for port in self.ports:
            self._processes.append(self._sentinel(port, first, quorum))
        for port in self.ports:
            self.until(lambda port=port: self._knows(port))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait(10)
        for server in self.servers.values():
            server.kill()

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(f'127.0.0.1:{port}' for port in self.ports)}/tango/0"

    def master(self) -> int:
        """Its port, as the first Sentinel has it."""
        return int(ask(self.ports[0], "SENTINEL", "GET-MASTER-ADDR-BY-NAME", "tango")[1])

    def _sentinel(self, port: int, master: int, quorum: int) -> subprocess.Popen[bytes]:
        file = self.directory / f"sentinel-{port}.conf"
        file.write_text(
            f"port {port}\nbind 127.0.0.1\ndir {self.directory}\nlogfile {self.directory}/sentinel-{port}.log\n"
            f"sentinel monitor tango 127.0.0.1 {master} {quorum}\nsentinel down-after-milliseconds tango 500\n"
            "sentinel failover-timeout tango 3000\n"
        )
        return subprocess.Popen([str(PROGRAM), str(file), "--sentinel"])

    def _knows(self, port: int) -> bool:
        state = ask(port, "SENTINEL", "MASTER", "tango")
        return int(state["num-slaves"]) == 1 and int(state["num-other-sentinels"]) == self.sentinels - 1

    def until(self, condition: Any, within_s: float = 20.0) -> None:
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


def ask(port: int, *words: str) -> Any:
    with Redis(port=port, socket_timeout=2, decode_responses=True) as redis:
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
