"""How the services of a soak are set: everything that may run out does so often."""

from __future__ import annotations

from receiver import SECRET

IMAGE = "autograding_image"
KEY = "soak"
PREFIX = "soak:"
JOBS_PER_S = 2.0
SETTLE_S = 30.0
"""No machine that nobody owns stays for longer, with the `machine_wait_s` below."""
MIN_AGE_S = 1.0

SETTINGS = {
    "TANGO_KEYS": KEY,
    "TANGO_HOST": "127.0.0.1",
    "TANGO_PORT": "0",
    "TANGO_QUEUE_PREFIX": PREFIX,
    "TANGO_QUEUE_HISTORY_LIMIT": "100000",
    "TANGO_HTTP_LIST_LIMIT": "100000",
    "TANGO_DISPATCHER_SLOTS": "5",
    # Short leases, so that they run out often; a long grace, so that no host stays away for longer.
    "TANGO_DISPATCHER_LEASE_S": "3",
    "TANGO_DISPATCHER_ADOPT_GRACE_S": "60",
    "TANGO_DISPATCHER_JOB_RETRIES": "20",
    "TANGO_DISPATCHER_GRACE_S": "10",
    "TANGO_DISPATCHER_MACHINE_WAIT_S": "20",
    "TANGO_DISPATCHER_COPY_IN_S": "20",
    "TANGO_DISPATCHER_UPKEEP_S": "1",
    "TANGO_DISPATCHER_FILE_UPKEEP_S": "3",
    "TANGO_LIMITS_OUTPUT_BYTES": str(64 * 1024),
    "TANGO_LIMITS_OUTPUT_STOP_BYTES": str(4 * 1024**2),
    "TANGO_LIMITS_LIVE_OUTPUT_BYTES": str(16 * 1024),
    "TANGO_LIMITS_DISK_BYTES": str(24 * 1024**2),
    "TANGO_LIMITS_MEMORY_BYTES": str(256 * 1024**2),
    "TANGO_LIMITS_PROCESSES": "40",
    "TANGO_CALLBACKS_MIN_AGE_S": str(MIN_AGE_S),
    "TANGO_CALLBACKS_UNANSWERED_S": "20",
    "TANGO_CALLBACKS_TIMEOUT_S": "2",
    "TANGO_CALLBACKS_ALLOW": "127.0.0.1",
    "TANGO_CALLBACKS_SECRET": SECRET,
}
