"""The API keys: who may come in, how often, to do what, and what may not be shown.

The file of keys is looked at again at most once a second, when a request comes. One that is broken or
gone changes nothing: the last good one stays in force, and the log says so until it is mended.
"""

from __future__ import annotations

import hmac
import logging
import math
import re
import stat
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from aiohttp import hdrs, web

from ..config import key_problem
from ..errors import ConfigError, Forbidden
from ..model import JobSpec
from . import keyfile
from .keyfile import Rights

log = logging.getLogger(__name__)

LOOK_S = 1.0
RACY_S = 2.0
"""A file changed so lately may change again within one tick of its clock, unseen: it is read again."""
REMIND_S = 60.0


@dataclass(frozen=True, slots=True)
class Access:
    """What one request may do."""

    word: str
    """The key as it was sent: it begins the names of its courselabs' directories."""
    rights: Rights

    @property
    def sees_all(self) -> bool:
        return self.rights.admin and not self.rights.courselabs

    def require_admin(self) -> None:
        """Raises Forbidden."""
        if not self.rights.admin:
            raise Forbidden("This key may not do that: it lacks the scope admin")

    def require_courselab(self, courselab: str) -> None:
        """Raises Forbidden."""
        if not self._may_use(courselab):
            raise Forbidden("This key may not use that courselab")

    def sees(self, job: JobSpec) -> bool:
        """Whether the job is this key's: every job is an admin's whose courselabs are not limited."""
        return self.sees_all or (job.lab == f"{self.word}-{job.courselab}" and self._may_use(job.courselab))

    def owns(self, lab: str) -> bool:
        """Whether a courselab's directory is this key's."""
        key, dash, courselab = lab[: len(self.word)], lab[len(self.word) :][:1], lab[len(self.word) + 1 :]
        return self.sees_all or (key == self.word and dash == "-" and self._may_use(courselab))

    def _may_use(self, courselab: str) -> bool:
        return not self.rights.courselabs or courselab.startswith(self.rights.courselabs)


class _Bucket:
    """Holds `burst` requests at most, and fills by `rate_per_s`."""

    def __init__(self, rights: Rights) -> None:
        self.rights = rights
        self._left = float(rights.burst)
        self._at = time.monotonic()

    def take(self) -> float:
        """0 if there was one to take, else the seconds until there is."""
        now = time.monotonic()
        self._left = min(self.rights.burst, self._left + (now - self._at) * self.rights.rate_per_s)
        self._at = now
        if self._left < 1:
            return (1 - self._left) / self.rights.rate_per_s
        self._left -= 1
        return 0.0


class Keys:
    """Those of the settings and those of the file. Raises ConfigError if they are wrong at the start."""

    def __init__(self, keys: Iterable[str], file: Path | None = None) -> None:
        self._settled = keyfile.of_settings(keys)
        self._file = _File(file) if file is not None else None
        self._buckets: dict[bytes, _Bucket] = {}
        self._secrets: set[str] = set()
        self._shown = re.compile(r"(?!)")
        self._known: list[Rights] = []
        self._from_file: list[Rights] = []
        self._vetted: set[str] = set()
        self._take(self._file.read() if self._file is not None else [])

    def match(self, word: str) -> Access | None:
        """The access that the word gives. Takes the same time for every word of one length."""
        self._look()
        given, found = keyfile.digest_of(word), None
        for rights in self._known:
            if hmac.compare_digest(rights.digest, given):
                found = rights
        if found is None or (found.word is None and not self._may_be_key(word, found)):
            return None
        return Access(word, found)

    def of(self, request: web.Request) -> Access | None:
        """That of the key in the path, or else of the one in the Authorization header."""
        found = self.match(request.match_info["key"])
        return self.bearer(request) if found is None else found

    def bearer(self, request: web.Request) -> Access | None:
        """That of the key in the Authorization header."""
        scheme, _, token = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
        return self.match(token.strip()) if scheme.lower() == "bearer" else None

    def wait_s(self, access: Access) -> float:
        """Counts a request. 0 if it is within the key's rate, else how long the client should wait."""
        rights = access.rights
        if rights.rate_per_s == math.inf:
            return 0.0
        bucket = self._buckets.get(rights.digest)
        if bucket is None or bucket.rights != rights:
            bucket = self._buckets[rights.digest] = _Bucket(rights)
        return bucket.take()

    def redact(self, text: str) -> str:
        return self._shown.sub("KEY", text)

    def _look(self) -> None:
        if self._file is None or (found := self._file.changed()) is None:
            return
        try:
            if found != self._from_file:
                self._take(found)
                log.info("%s was read again: it holds %d keys", self._file.path, len(found))
        except ConfigError as e:
            self._file.complain(str(e))
        else:
            self._file.is_well()

    def _take(self, found: list[Rights]) -> None:
        try:
            keyfile.require_apart([*self._settled, *found])
        except ConfigError as e:
            raise ConfigError(f"http.keys_file: {self._file.path}: {e}" if self._file else str(e)) from None
        self._known, self._from_file = [*self._settled, *found], found
        self._vetted.clear()
        digests = {rights.digest for rights in self._known}
        self._buckets = {digest: bucket for digest, bucket in self._buckets.items() if digest in digests}
        # Also those that are no longer in force: directories are named after them.
        self._hide(rights.word for rights in self._known if rights.word is not None)

    def _hide(self, words: Iterable[str]) -> None:
        before = len(self._secrets)
        self._secrets.update(words)
        if len(self._secrets) > before:
            longest_first = sorted(self._secrets, key=len, reverse=True)
            self._shown = re.compile("|".join(map(re.escape, longest_first)))

    def _may_be_key(self, word: str, rights: Rights) -> bool:
        """What could not be looked at while only its digest was known."""
        if word in self._vetted:
            return True
        problem = key_problem(word)
        parts = {keyfile.digest_of(part) for part in keyfile.parts_of(word)}
        aliased = [one.name for one in self._known if one.digest in parts]
        if problem or aliased:
            log.error("%s is refused: %s", rights.name, problem or f"it is {aliased[0]} plus '-…'")
            return False
        self._hide([word])
        self._vetted.add(word)
        return True


class _File:
    """The file of keys on the disk, which should be a local one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._looked = self._complained = float("-inf")
        self._seen: tuple[int, int, int] | None = None
        self._problem = ""

    def read(self) -> list[Rights]:
        """Raises ConfigError, which says why and shows no key."""
        self._looked = time.monotonic()
        try:
            at = self.path.stat()
            if not stat.S_ISREG(at.st_mode):
                raise ConfigError("it is no file")
            with self.path.open("rb") as file:
                content = file.read(keyfile.MAX_BYTES + 1)
            if len(content) > keyfile.MAX_BYTES:
                raise ConfigError(f"it is larger than {keyfile.MAX_BYTES} bytes")
            found = keyfile.parse(content.decode())
        except OSError as e:
            raise ConfigError(f"http.keys_file: {self.path}: {e.strerror}") from None
        except UnicodeDecodeError:
            raise ConfigError(f"http.keys_file: {self.path}: it is not valid UTF-8") from None
        except ConfigError as e:
            raise ConfigError(f"http.keys_file: {self.path}: {e}") from None
        racy = time.time() - at.st_mtime < RACY_S
        self._seen = None if racy else (at.st_ino, at.st_mtime_ns, at.st_size)
        return found

    def changed(self) -> list[Rights] | None:
        """The file's keys if it is another one than before, and good. Looks at most once in LOOK_S."""
        now = time.monotonic()
        if now - self._looked < LOOK_S:
            return None
        self._looked = now
        try:
            at = self.path.stat()
            if (at.st_ino, at.st_mtime_ns, at.st_size) == self._seen:
                return None
            found = self.read()
        except OSError as e:
            self.complain(f"http.keys_file: {self.path}: {e.strerror}")
        except ConfigError as e:
            self.complain(str(e))
        else:
            return found
        return None

    def is_well(self) -> None:
        if self._problem:
            log.info("%s is mended", self.path)
        self._problem = ""

    def complain(self, problem: str) -> None:
        self._seen = None
        now = time.monotonic()
        if problem != self._problem or now - self._complained >= REMIND_S:
            log.error("%s; the keys that it held before stay in force", problem)
            self._problem, self._complained = problem, now
