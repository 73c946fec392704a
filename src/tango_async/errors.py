"""Every error this service raises on purpose.

    TangoError
    ├── ConfigError            a setting is missing or wrong; the message names it
    ├── BadRequest             the client sent something we refuse; the message is shown to it
    │   ├── BadName            … a name that may not reach a path
    │   └── Forbidden          … with a key that may not do it
    ├── Rejected               addJob: one line per reason, as Tango's list of trace lines
    ├── NotFound               a courselab, job or output that is not there
    ├── StoreError             the file store could not do it
    │   ├── InputChanged       … since a pinned input is not what was pinned
    │   ├── StoreFull          … because there is no space left
    │   └── StoreUnavailable   … because its server cannot be reached, or not now
    ├── QueueUnavailable       Redis cannot be reached, or not now
    │   ├── QueueOutOfMemory   … since its memory is full
    │   └── QueueRefused       … since the settings do not let us in, or not far enough; the message names them
    ├── QueueBroken            Redis refuses a command: a defect, or rights that are missing
    ├── QueueFull              Redis has no room for another job
    ├── ClientError            a Tango server refused our call, or cannot be reached
    ├── Stale                  this holder's seq is no longer the job's: it may write nothing
    └── VmmsError              a machine or its engine failed: an infrastructure fault, to be retried
        ├── VmmsUnavailable    the engine does not answer, or this host lacks what it needs
        │   └── HostUnavailable  … that is one of several, or a job's own account; the others work on
        ├── ImageNotFound      the engine has no such image
        ├── NoCapacity         there is no room for another machine now
        ├── Unsuitable         what was asked for cannot be had, now or later
        ├── MachineLost        the machine is gone, or its end is unknown
        │   └── MachineReclaimed … since its owner took it back
        └── NotStarted         the machine ended before the job's program began

Libraries' exceptions become one of these at the module that imports the library.
"""


class TangoError(Exception):
    """Base of all errors raised on purpose."""


class ConfigError(TangoError):
    """A setting is missing or wrong."""


class BadRequest(TangoError):
    """The client sent something that is refused."""


class BadName(BadRequest):
    """A name that may not become part of a path."""


class Forbidden(BadRequest):
    """What the key may not do."""


class Rejected(TangoError):
    """addJob refused, with one reason a line."""

    def __init__(self, reasons: list[str]) -> None:
        super().__init__("; ".join(reasons))
        self.reasons = reasons


class NotFound(TangoError):
    """What was asked for is not there."""


class StoreError(TangoError):
    """The file store failed."""


class InputChanged(StoreError):
    """A pinned input is gone, or not what it was when the job was added."""


class StoreFull(StoreError):
    """The file store has no space left."""


class StoreUnavailable(StoreError):
    """The file store's server cannot be reached, or not now; what it holds is safe."""


class QueueUnavailable(TangoError):
    """Redis cannot be reached."""


class QueueOutOfMemory(QueueUnavailable):
    """Redis has no memory left; what it holds is safe, and asking again later is right."""


class QueueRefused(QueueUnavailable):
    """Redis does not let us in, or not far enough: a password, a certificate or the rights of a user are wrong."""


class QueueBroken(TangoError):
    """Redis refuses a command for good."""


class QueueFull(TangoError):
    """Redis has no room for another job."""


class ClientError(TangoError):
    """A Tango server refused a call of our client, or cannot be reached."""


class Stale(TangoError):
    """The caller no longer holds the job."""


class VmmsError(TangoError):
    """A machine or its engine failed, through no fault of the job."""


class VmmsUnavailable(VmmsError):
    """The engine does not answer, or the host lacks what it needs."""


class HostUnavailable(VmmsUnavailable):
    """One of several engines does not answer, or nothing can be done in an account that a job brought."""


class ImageNotFound(VmmsError):
    """The engine has no such image."""


class MachineLost(VmmsError):
    """The machine is gone, or how it ended is unknown."""


class NoCapacity(VmmsError):
    """There is no room for another machine now."""


class Unsuitable(VmmsError):
    """What the job or the settings ask for cannot be had, now or later; the message names it and holds no secret."""


class MachineReclaimed(MachineLost):
    """Whoever lent the machine took it back, as with a spot instance."""


class NotStarted(VmmsError):
    """The machine ended before the job's program began."""
