"""What goes wrong with an S3 server, as errors of ours that name the setting to look at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import aiohttp
from botocore import exceptions

from ..config import Settings
from ..errors import StoreError, StoreFull, StoreUnavailable

_GONE = {"NoSuchKey", "NoSuchUpload", "404", "NotFound"}

_FULL = {"QuotaExceeded", "InsufficientStorage", "XMinioStorageFull", "StorageFull", "507"}

_KEYS = "s3.access_key and s3.secret_key (or AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, or the instance's role)"

_SETTINGS = {
    "NoSuchBucket": "store.url: there is no bucket {bucket} at {server}",
    "InvalidBucketName": "store.url: {bucket} cannot be the name of a bucket",
    "AllAccessDisabled": "store.url: the bucket {bucket} is closed",
    "AccessDenied": f"store.url: {{bucket}} is forbidden to {_KEYS}",
    "403": f"store.url: {{bucket}} is forbidden to {_KEYS}",
    "InvalidAccessKeyId": f"{_KEYS}: the server does not know that access key",
    "SignatureDoesNotMatch": f"{_KEYS}: the secret key is not that access key's",
    "ExpiredToken": "s3.session_token: it has expired",
    "InvalidToken": "s3.session_token: the server does not know it",
    "PermanentRedirect": "s3.region and s3.endpoint: the bucket {bucket} is in another region",
    "301": "s3.region and s3.endpoint: the bucket {bucket} is in another region",
    "AuthorizationHeaderMalformed": "s3.region: it is not the region of {bucket}",
    "IllegalLocationConstraintException": "s3.region: it is not the region of {bucket}",
    "RequestTimeTooSkewed": "this host's clock differs from the server's by too much",
    "KMS.NotFoundException": "s3.kms_key: there is no such key",
    "KMS.DisabledException": "s3.kms_key: the key is disabled",
}
"""What no trying again will mend, by the server's word for it."""

_AWAY = (
    exceptions.ConnectionError,
    exceptions.HTTPClientError,
    exceptions.IncompleteReadError,
    exceptions.CredentialRetrievalError,
    aiohttp.ClientError,
    TimeoutError,
    OSError,
)


class Gone(StoreError):
    """There is no such object."""


class WrongSetting(StoreError):
    """The server will answer this way until a setting, or a right there, is changed."""


class Translator:
    """Turns what botocore and aiohttp raise into errors of ours."""

    def __init__(self, settings: Settings) -> None:
        self._words = {
            "bucket": settings.store.bucket[0],
            "server": settings.s3.endpoint or "Amazon S3",
        }
        self.away = 0
        """How often the server was found away."""

    @contextmanager
    def __call__(self) -> Iterator[None]:
        try:
            yield
        except (exceptions.BotoCoreError, exceptions.ClientError, aiohttp.ClientError, OSError) as e:
            error = self.translate(e)
            self.away += isinstance(error, StoreUnavailable)
            raise error from e

    def translate(self, error: Exception) -> StoreError:
        match error:
            case exceptions.ClientError():
                return self._refused(error)
            case exceptions.NoCredentialsError() | exceptions.PartialCredentialsError():
                return WrongSetting(f"{_KEYS}: there are none")
            case _ if isinstance(error, _AWAY):
                return StoreUnavailable(f"s3.endpoint: {self._words['server']} does not answer: {_short(error)}")
            case _:
                return StoreError(f"The S3 store failed: {_short(error)}")

    def _refused(self, error: exceptions.ClientError) -> StoreError:
        code = str(error.response.get("Error", {}).get("Code", ""))
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in _GONE:
            return Gone("There is no such object in the S3 store")
        if code in _FULL or status == 507:
            return StoreFull("The S3 store has no space left")
        if code in _SETTINGS:
            return WrongSetting(_SETTINGS[code].format(**self._words))
        if status >= 500 or status == 429:
            return StoreUnavailable(f"s3.endpoint: {self._words['server']} answers {status} {code}: try again later")
        return StoreError(f"The S3 store failed: {_short(error)}")


def _short(error: Exception) -> str:
    """Without the paths of URLs: they hold the names of courselabs, and these the keys of the API."""
    text = " ".join(re.sub(r"(https?://[^/\s\"']+)[^\s\"']*", r"\1", str(error)).split())
    return text[:300] or type(error).__name__
