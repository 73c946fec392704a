"""The AWS accounts in use: the settings' own, and those that jobs brought.

A job's credentials are kept in a file of this dispatcher's place, readable by its user only, from before
the first instance is asked for until none is left there: without them nobody could end it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from ...config import Ec2
from ...errors import Unsuitable, VmmsError, VmmsUnavailable
from ...machine import Credentials
from .client import Account
from .instances import INSTALL

log = logging.getLogger(__name__)

OWN = ""
"""The settings' own account."""
CLOSE_S = 10.0
"""Longest wait for the end of our key pairs: one call may take minutes while AWS is silent."""


class Accounts:
    """All of them, by CloudChoice.account."""

    def __init__(self, settings: Ec2, install: str, directory: Path, *, wait_s: float) -> None:
        """`wait_s`: a job that brought an account asks for its machine within this time, or never."""
        self._settings = settings
        self._directory = directory
        self._clients: dict[str, Account] = {}
        self._opening = asyncio.Lock()
        self._key_name = f"tango-{install}"
        self._key_tags = [{"Key": INSTALL, "Value": install}]
        self._keyed: dict[str, str] = {}
        """Account → the id of our key pair there. The next dispatcher in our place has one of the same name."""
        self._wait_s = wait_s
        self._brought_s: dict[str, list[float]] = defaultdict(list)
        """When jobs brought an account that have not asked for a machine there since."""
        self._used: Counter[str] = Counter()
        # One an account: what is slow in one that a job brought must hold up no other.
        self._keying = defaultdict[str, asyncio.Lock](asyncio.Lock)
        self._changing = defaultdict[str, asyncio.Lock](asyncio.Lock)
        """Held while a job's account is kept or forgotten: else it might be forgotten for the job that brings it."""

    async def open(self) -> None:
        """Raises VmmsUnavailable."""
        try:
            self._directory.mkdir(parents=True, exist_ok=True, mode=0o700)
            for unfinished in self._directory.glob("*.new"):  # of one that was killed: names nothing, and is secret
                unfinished.unlink()
        except OSError as e:
            raise VmmsUnavailable(f"ec2SSH: {self._directory}: {e.strerror}") from e
        await self.get(OWN)

    async def close(self) -> None:
        """Removes our key pairs, if AWS answers soon; else whoever opens these accounts next does it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(CLOSE_S), asyncio.TaskGroup() as group:
                for name in list(self._keyed):
                    group.create_task(self._try_to_drop_key(name))
        for client in self._clients.values():
            await client.close()
        self._clients.clear()

    async def key_pair(self, account: str, public: str) -> str:
        """The name of the key pair there: the settings' one, or one of ours, which goes when we do."""
        if self._settings.key_name and account == OWN:
            return self._settings.key_name
        async with self._keying[account]:
            if account not in self._keyed:
                client = await self.get(account)
                await client.call("delete_key_pair", KeyName=self._key_name)  # that of an earlier life
                made = await client.call(
                    "import_key_pair",
                    KeyName=self._key_name,
                    PublicKeyMaterial=public.encode(),
                    TagSpecifications=[{"ResourceType": "key-pair", "Tags": self._key_tags}],
                )
                self._keyed[account] = made["KeyPairId"]
        return self._key_name

    async def key_again(self, account: str) -> bool:
        """Somebody removed our key pair: `key_pair` makes it anew. False if it is not ours to make, or is made now."""
        if self._settings.key_name and account == OWN:
            return False
        async with self._keying[account]:
            self._keyed.pop(account, None)
        return True

    async def _drop_key(self, account: str) -> None:
        """Removes ours, or that of an earlier life in this place. Raises VmmsError."""
        made = self._keyed.pop(account, "")
        which = {"KeyPairId": made} if made else {"KeyName": self._key_name}
        await (await self.get(account)).call("delete_key_pair", **which)

    async def _try_to_drop_key(self, account: str) -> None:
        with suppress(VmmsError):
            await self._drop_key(account)

    async def keep(self, credentials: Credentials) -> None:
        """From now on `get` knows the account, also after a restart. Raises VmmsUnavailable."""
        async with self._changing[credentials.account]:
            self._brought_s[credentials.account].append(time.monotonic())
            await asyncio.to_thread(self._write, credentials)

    def _write(self, credentials: Credentials) -> None:
        file = self._file(credentials.account)
        if file.exists():
            return
        new = file.with_suffix(".new")
        try:
            new.touch(mode=0o600)
            with new.open("wb") as out:
                out.write(msgspec.json.encode(credentials))
                out.flush()
                os.fsync(out.fileno())
            new.rename(file)
        except OSError as e:
            raise VmmsUnavailable(f"ec2SSH: {file.parent}: {e.strerror}") from e

    @contextmanager
    def used(self, account: str) -> Iterator[None]:
        """While a machine is made there, the account is not forgotten."""
        self._used[account] += 1
        try:
            yield
        finally:
            self._used[account] -= 1

    def arrived(self, account: str) -> None:
        """A job that brought it asks for its machine now."""
        if brought := self._brought_s.get(account):
            brought.pop(0)

    def idle(self, account: str) -> bool:
        """Whether no job is on its way to a machine there."""
        since_s = time.monotonic() - self._wait_s
        return not self._used[account] and not any(at > since_s for at in self._brought_s.get(account, ()))

    def outlived(self, account: str) -> bool:
        """Whether every instance that was made with these credentials has ended itself by now."""
        with suppress(FileNotFoundError):
            return time.time() - self._file(account).stat().st_mtime > self._settings.max_life_minutes * 60
        return True

    async def get(self, account: str) -> Account:
        """Raises Unsuitable if its credentials are not kept here, VmmsUnavailable."""
        async with self._opening:
            if account not in self._clients:
                client = Account(self._settings, None if account == OWN else self._read(account))
                await client.open()
                self._clients[account] = client
            return self._clients[account]

    def names(self) -> list[str]:
        """All whose credentials are kept, the settings' own first."""
        return [OWN, *sorted(file.stem for file in self._directory.glob("*.json"))]

    async def forget(self, account: str) -> None:
        """Once nothing is left there, and no job is on its way; if AWS does not answer, a later call does it.

        The settings' own stays.
        """
        async with self._changing[account]:
            if account == OWN or not self.idle(account):
                return
            try:
                await self._drop_key(account)
            except Unsuitable:
                pass  # who revoked the credentials has the account to himself
            except VmmsError as e:
                log.info("an account that a job brought has our key pair still: %s", e)
                return
            if not self.idle(account):
                return
            self._brought_s.pop(account, None)
            with suppress(FileNotFoundError):
                self._file(account).unlink()
            client = self._clients.pop(account, None)
            if client is not None:
                await client.close()

    def _read(self, account: str) -> Credentials:
        try:
            return msgspec.json.decode(self._file(account).read_bytes(), type=Credentials)
        except (OSError, msgspec.DecodeError) as e:
            raise Unsuitable("addJob's accessKeyId and accessKey are not known here any more") from e

    def _file(self, account: str) -> Path:
        return self._directory / f"{account}.json"
