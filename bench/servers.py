"""Servers to stand beside: nginx, and aiohttp's least; each a process on a free port of this machine."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from host import BENCH, Missing

NGINX = """
daemon off; master_process off; worker_processes 1; pid {folder}/nginx.pid; error_log {folder}/nginx.log; user root;
events {{ worker_connections 64; }}
http {{
  access_log off; sendfile on; client_max_body_size 0; client_body_temp_path {folder}/body;
  server {{
    listen 127.0.0.1:{port}; root {folder};
    location /file/ {{ dav_methods PUT; create_full_put_path on; }}
  }}
}}
"""


@dataclass
class Server:
    name: str
    url: str
    pid: int


@asynccontextmanager
async def nginx(folder: Path) -> AsyncIterator[Server]:
    """PUT and GET of /file/NAME. Raises Missing."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise Missing("nginx is not installed: apt-get install nginx-light")
    folder.mkdir()
    (folder / "file").mkdir()
    port = _free_port()
    config = folder / "nginx.conf"
    config.write_text(NGINX.format(folder=folder, port=port))
    async with _running("nginx", [program, "-p", str(folder), "-c", str(config)], port, folder) as server:
        yield server


@asynccontextmanager
async def bare_aiohttp(folder: Path) -> AsyncIterator[Server]:
    folder.mkdir()
    port = _free_port()
    command = [sys.executable, str(BENCH / "bare.py"), str(folder), str(port)]
    async with _running("bare aiohttp", command, port, folder) as server:
        yield server


@asynccontextmanager
async def _running(name: str, command: list[str], port: int, folder: Path) -> AsyncIterator[Server]:
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        for _ in range(200):
            if _listens(port):
                break
            if process.poll() is not None:
                raise RuntimeError(f"{name}: {(folder / 'log').read_text(errors='replace')[-800:]}")
            await asyncio.sleep(0.05)
        yield Server(name, f"http://127.0.0.1:{port}", process.pid)
    finally:
        process.terminate()
        process.wait(20)


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _listens(port: int) -> bool:
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0
