"""Why an attempt came to nothing: what the queue and the student are told of an error, and who is charged for it."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import (
    ImageNotFound,
    MachineLost,
    MachineReclaimed,
    NoCapacity,
    NotStarted,
    StoreError,
    StoreUnavailable,
    Unsuitable,
    VmmsError,
    VmmsUnavailable,
)
from ..model import Verdict

MOST_FREE = 20
"""Attempts after which also a fault of the engine is charged, so that no job goes round for ever."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why an attempt came to nothing, though the job is not to blame."""

    reason: str
    """Shown to the student if retries are spent; holds nothing of the host's."""
    counter: str
    verdict: Verdict = Verdict.GAVE_UP
    charged: bool = True
    hopeless: bool = False
    """Another try would fail as well."""


def fault_of(error: Exception, *, engine_well: bool) -> Fault:
    """What the queue is told of an error."""
    match error:
        case TimeoutError() if not engine_well:
            return Fault("The grading host's engine does not answer.", "waitvm_timeouts", charged=False)
        case VmmsUnavailable():
            return Fault("The grading host's engine does not answer.", "runjob_errors", charged=False)
        case VmmsError() if not engine_well:
            return Fault("The grading host can run no job now.", "runjob_errors", charged=False)
        case ImageNotFound():
            return Fault("The image is not on the grading host.", "waitvm_timeouts")
        case NotStarted():
            return Fault("The program could not be started.", "copyin_errors")
        case Unsuitable():
            return Fault(f"{error}.", "waitvm_timeouts", hopeless=True)
        case NoCapacity():
            return Fault("The cloud has no machine to give now.", "waitvm_timeouts", charged=False)
        case MachineReclaimed():
            return Fault("The cloud took its machine back.", "runjob_errors", charged=False)
        case MachineLost():
            return Fault("The machine was lost.", "runjob_errors", Verdict.OS_ERROR)
        case VmmsError():
            return Fault("The machine failed.", "runjob_errors", Verdict.OS_ERROR)
        case StoreUnavailable():
            return Fault("The file store does not answer.", "copyin_errors", Verdict.COPY_IN_FAILED, charged=False)
        case StoreError():
            return Fault("The job's files could not be read.", "copyin_errors", Verdict.COPY_IN_FAILED)
        case TimeoutError():
            return Fault("No machine was ready in time.", "waitvm_timeouts")
        case _:
            return Fault("The service failed.", "runjob_errors")
