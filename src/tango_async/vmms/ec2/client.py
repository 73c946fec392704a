"""One AWS account's EC2 API. The only module that knows aiobotocore; its errors become ours here.

Which error is whose: what AWS has no room for is NoCapacity, and passes; what was asked for and is not
there is Unsuitable, and names the setting; everything else is the engine's trouble.
"""

from __future__ import annotations

import logging
from contextlib import AsyncExitStack
from typing import Any

from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    NoCredentialsError,
    NoRegionError,
    ParamValidationError,
    PartialCredentialsError,
)

from ...config import Ec2
from ...errors import HostUnavailable, NoCapacity, Unsuitable, VmmsError, VmmsUnavailable
from ...machine import Credentials

log = logging.getLogger(__name__)
for noisy in ("botocore", "aiobotocore"):  # they can write a request with its signature
    logging.getLogger(noisy).setLevel(logging.WARNING)

CONNECT_S, READ_S = 5.0, 20.0
TRIES = 6
"""Of one call, with growing pauses, while AWS is throttling, broken or away."""

NO_CAPACITY = {
    "InsufficientInstanceCapacity", "InsufficientHostCapacity", "InsufficientCapacity", "InstanceLimitExceeded",
    "VcpuLimitExceeded", "MaxSpotInstanceCountExceeded", "SpotMaxPriceTooLow", "Unsupported",
    "InsufficientFreeAddressesInSubnet", "InsufficientAddressCapacity", "MaxIOPSLimitExceeded", "VolumeLimitExceeded",
}  # fmt: skip
"""There is no room now, or the account may not have more, or not of this type there: another one may be had."""

CREDENTIALS = {
    "AuthFailure", "InvalidClientTokenId", "SignatureDoesNotMatch", "UnrecognizedClientException", "InvalidAccessKeyId",
    "ExpiredToken", "ExpiredTokenException", "RequestExpired", "OptInRequired", "PendingVerification", "Blocked",
    "MissingAuthenticationToken", "InvalidToken", "UnauthorizedOperation", "AccessDenied", "AccessDeniedException",
}  # fmt: skip

SETTINGS = {
    "InvalidAMIID": "ec2.images",
    "InvalidInstanceType": "ec2.types",
    "InvalidKeyPair": "ec2.key_name",
    "InvalidGroup": "ec2.security_groups",
    "InvalidGroupId": "ec2.security_groups",
    "InvalidSecurityGroupID": "ec2.security_groups",
    "InvalidSubnetID": "ec2.subnets",
    "InvalidSubnet": "ec2.subnets",
}
"""The first part of an error code → what is wrong."""


class Gone(VmmsError):
    """AWS knows nothing of that id."""


class Account:
    """Calls by their names in botocore, such as `describe_instances`."""

    def __init__(self, settings: Ec2, credentials: Credentials | None = None) -> None:
        """With the settings' credentials, unless others are given."""
        self._settings = settings
        self._credentials = credentials
        self._away = HostUnavailable if credentials else VmmsUnavailable
        """What goes wrong in an account that a job brought says nothing of the others."""
        self._stack = AsyncExitStack()
        self._client: Any = None

    async def open(self) -> None:
        """Makes no call yet. Raises VmmsUnavailable."""
        own = self._credentials
        key_id = own.key_id if own else self._settings.access_key_id
        secret = own.secret if own else self._settings.access_key
        try:
            self._client = await self._stack.enter_async_context(
                get_session().create_client(
                    "ec2",
                    region_name=self._settings.region or None,
                    endpoint_url=self._settings.endpoint or None,
                    aws_access_key_id=key_id or None,
                    aws_secret_access_key=secret or None,
                    config=AioConfig(
                        connect_timeout=CONNECT_S,
                        read_timeout=READ_S,
                        retries={"mode": "standard", "total_max_attempts": TRIES},
                        max_pool_connections=50,
                    ),
                )
            )
        except NoRegionError as e:
            raise VmmsUnavailable("ec2.region: unset, and none is found in AWS's own set-up") from e
        except (BotoCoreError, ValueError) as e:
            raise VmmsUnavailable(f"ec2.region or ec2.endpoint: {e}") from e

    async def close(self) -> None:
        await self._stack.aclose()

    async def call(self, operation: str, **arguments: Any) -> dict[str, Any]:
        """Raises NoCapacity, Unsuitable, Gone, VmmsUnavailable."""
        try:
            answer: dict[str, Any] = await getattr(self._client, operation)(**arguments)
        except ClientError as e:
            raise self._ours(operation, e) from e
        except (NoCredentialsError, PartialCredentialsError) as e:
            raise VmmsUnavailable("ec2.access_key_id: unset, and AWS's own set-up has no credentials either") from e
        except ParamValidationError as e:
            raise Unsuitable(f"{operation}: {e}") from e
        except (BotoCoreError, OSError) as e:
            raise self._away(f"ec2.region or ec2.endpoint: the EC2 API cannot be reached: {e}") from e
        return answer

    async def all(self, operation: str, key: str, **arguments: Any) -> list[dict[str, Any]]:
        """The items of all pages."""
        found: list[dict[str, Any]] = []
        while True:
            answer = await self.call(operation, **arguments)
            found += answer.get(key, [])
            if not (token := answer.get("NextToken")):
                return found
            arguments["NextToken"] = token

    def _ours(self, operation: str, error: ClientError) -> VmmsError:
        code, said = error.response["Error"].get("Code", ""), error.response["Error"].get("Message", "")
        text = f"{operation}: {code}: {said}"
        if code in NO_CAPACITY:
            return NoCapacity(text)
        if code in CREDENTIALS:
            if self._credentials:
                return Unsuitable(f"addJob's accessKeyId and accessKey: AWS refuses them: {operation}: {code}")
            return VmmsUnavailable(f"ec2.access_key_id, ec2.access_key or ec2.region: AWS refuses them: {text}")
        if code.startswith("InvalidInstanceID"):
            return Gone(text)
        if setting := SETTINGS.get(code.partition(".")[0]):
            return Unsuitable(f"{setting}: {said} ({code})")
        if code in ("InvalidParameterValue", "InvalidParameterCombination", "MissingParameter", "InvalidRequest"):
            return Unsuitable(text)
        return self._away(text)
