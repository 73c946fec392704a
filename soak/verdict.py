"""The table at the end: what was promised beside what was seen, and whether the soak is passed."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from count import Runs, ends, jobs_of
from jobs import RUN
from load import Load, Submission
from recovery import Recovery
from settings import MIN_AGE_S, PREFIX
from stage import Stage
from tormentor import Tormentor

SHOWN = 8
"""Most instances of one failure that are printed."""


@dataclass(frozen=True, slots=True)
class Row:
    what: str
    value: str
    faults: Sequence[str] = ()
    """Each fails the soak."""


@dataclass
class Evidence:
    """What was gathered while the soak ran."""

    stage: Stage
    load: Load
    tormentor: Tormentor
    recovery: Recovery
    dead: list[int]
    """As /jobs/ lists them."""
    strays: dict[str, list[str]] = field(default_factory=dict)
    exits: dict[str, int | None] = field(default_factory=dict)


def rows(seen: Evidence) -> list[Row]:
    accepted = seen.load.accepted
    runs = seen.stage.starts.read()
    ended = ends(seen.stage.aof, PREFIX)
    return [
        *_torments(seen),
        *_jobs(seen, accepted, ended),
        *_starts(seen, accepted, runs),
        *_callbacks(seen, accepted),
        *_strays(seen),
        *_recovery(seen),
    ]


def _torments(seen: Evidence) -> list[Row]:
    done = seen.tormentor.done
    kills = sum(n for what, n in done.items() if what.startswith(("kill", "destroy")))
    by_themselves = {p.name: p.ended_by_itself for p in seen.stage.programs if p.ended_by_itself}
    return [
        Row("kills", f"{kills}"),
        Row("torments", ", ".join(f"{what} {n}" for what, n in sorted(done.items())) or "none"),
        Row("processes that ended by themselves", _listed(by_themselves)),
    ]


def _jobs(seen: Evidence, accepted: list[Submission], ended: Counter[int]) -> list[Row]:
    ids = {s.id for s in accepted}
    owners = Counter(i for s in accepted for i in set(s.ids))
    twice = [f"job {i}: {n} times" for i, n in ended.items() if n > 1]
    twice += [f"job {i}: listed {n} times" for i, n in Counter(seen.dead).items() if n > 1]
    twice += [f"job {s.id}: {len(s.served)} feedbacks" for s in accepted if len(s.served) > 1]
    faults = [f"job {s.id} ({s.kind.name}, {s.token}): {s.fault}" for s in accepted if s.served and s.fault]
    unanswered = [i for i in ended if i not in ids]
    given = [f"id {i}: for {n} submissions" for i, n in owners.items() if n > 1]
    given += [f"{s.token}: ids {sorted(set(s.ids))}" for s in accepted if len(set(s.ids)) > 1]
    never = [s.token for s in seen.load.submissions if not s.ids]
    return [
        Row("jobs submitted", f"{len(seen.load.submissions)}"),
        Row("jobs accepted", f"{len(accepted)}"),
        Row("never accepted, whose clients gave up", f"{len(never)}", never),
        Row("addJobs sent", f"{sum(s.sent for s in seen.load.submissions)}"),
        Row("answers: refused, connections broken", f"{seen.load.refused}, {seen.load.broken}"),
        Row("ids given twice, or two for one", f"{len(given)}", given),
        Row("ended", f"{len(ids & set(ended))}"),
        Row("ended, though no client knows the id", f"{len(unanswered)}"),
        *_lost(accepted, ended),
        Row("ended twice", f"{len(twice)}", twice),
        Row("feedback not what the job must say", f"{len(faults)}", faults),
    ]


def _lost(accepted: list[Submission], ended: Counter[int]) -> list[Row]:
    lost = [f"job {s.id} ({s.kind.name})" for s in accepted if s.id not in ended]
    unserved = [f"job {s.id} ({s.kind.name})" for s in accepted if s.id in ended and not s.served]
    return [Row("lost", f"{len(lost)}", lost), Row("ended, but never served", f"{len(unserved)}", unserved)]


def _starts(seen: Evidence, accepted: list[Submission], runs: dict[str, Runs]) -> list[Row]:
    histogram = Counter(len(runs[s.token].began) if s.token in runs else 0 for s in accepted)
    known = {s.token for s in seen.load.submissions}
    strangers = [f"a program of {token}" for token in runs if token not in known]
    destroyed, away, held, unexplained, wrong = [], [], [], list(strangers), []
    lost = jobs_of(seen.stage.backend.lost, seen.stage.aof, PREFIX)
    for s in accepted:
        its = runs.get(s.token, Runs())
        if len(its.began) > 1:
            what = f"job {s.id} ({s.kind.name}, {s.token}): {len(its.began)} starts"
            ended = len(its.began) - 1 <= sum(lost[i] for i in set(s.ids))
            if ended or set(s.ids) & seen.tormentor.lost_machines:
                destroyed.append(what)
            elif _engine_died(seen, its):
                away.append(what)
            elif _held_up(seen, s, its):
                held.append(what)
            else:
                unexplained.append(what)
        wrong += _wrong_run(s, its)
    return [
        Row("program starts per job", _listed({str(n): histogram[n] for n in sorted(histogram)})),
        Row("repeats: its machine was destroyed", f"{len(destroyed)}"),
        Row("repeats: the engine died before its end was known", f"{len(away)}"),
        Row("repeats: much was said while nobody could read it", f"{len(held)}"),
        Row("repeats without a reason", f"{len(unexplained)}", unexplained),
        Row("served ≠ the run that finished", f"{len(wrong)}", wrong),
    ]


def _engine_died(seen: Evidence, its: Runs) -> bool:
    """Whether before each repeat the engine died, when the run before had not ended or its end was not known yet.

    What a container says while its engine is dead may be lost, and so it runs again.
    """
    names = sorted(its.began, key=lambda name: its.began[name])
    return all(
        any(died <= its.began[after] and back >= its.began[before] for died, back in seen.stage.backend.away)
        for before, after in pairwise(names)
    )


def _held_up(seen: Evidence, s: Submission, its: Runs) -> bool:
    """Whether a job that says very much ran again each time that nobody could read it.

    Then its engine holds it up, so that its time runs out, or its log gives up its beginning.
    """
    times = sorted(its.began.values())
    away = [(began, back) for kind, began, back in seen.tormentor.outages if kind in ("engine", "sshd", "dispatcher")]
    return s.kind.name == "flood" and all(
        any(began < after and back > before for began, back in away) for before, after in pairwise(times)
    )


def _wrong_run(s: Submission, its: Runs) -> list[str]:
    names = [name.decode() for name in RUN.findall(s.feedback)]
    where = f"job {s.id} ({s.kind.name}, {s.token})"
    if not names:
        return [f"{where}: no run, of {len(its.began)}"] if s.kind.finishes and s.feedback else []
    if names[0] not in its.began:
        return [f"{where}: a run that is not its own"]
    if s.kind.finishes and names[0] not in its.finished:
        return [f"{where}: a run that did not finish"]
    return []


def _callbacks(seen: Evidence, accepted: list[Submission]) -> list[Row]:
    receiver = seen.stage.receiver
    due = [s for s in accepted if s.callback]
    missing = [f"job {s.id}" for s in due if not receiver.taken[s.token]]
    twice = sum(len(receiver.taken[s.token]) - 1 for s in due if receiver.taken[s.token])
    wrong = [
        f"job {s.id}: {what}"
        for s in due
        for d in receiver.taken[s.token]
        for what, bad in (
            ("not signed", not d.signed),
            ("of another job", d.job_id != s.id),
            ("not what poll served", d.sha not in s.served),
        )
        if bad
    ]
    wrong += [f"{s.token}: never asked for" for s in accepted if not s.callback and receiver.taken[s.token]]
    # When an answer left the server nobody knows here: it may have been lost, held on its way, or read late. It was
    # after it had been asked for.
    early = [
        f"job {s.id}: {receiver.first_at[s.token] - s.asked_at:.2f} s after it was asked for"
        for s in due
        if s.token in receiver.first_at and receiver.first_at[s.token] < s.asked_at + MIN_AGE_S
    ]
    return [
        Row("callbacks due", f"{len(due)}"),
        Row("callbacks delivered", f"{len(due) - len(missing)}"),
        Row("callbacks missing", f"{len(missing)}", missing),
        Row("callbacks delivered again", f"{twice}"),
        Row("callbacks wrong", f"{len(wrong)}", wrong),
        Row("callbacks too early", f"{len(early)}", early),
    ]


def _strays(seen: Evidence) -> list[Row]:
    rows = [Row(f"strays: {kind}", f"{len(found)}", found) for kind, found in seen.strays.items()]
    bad = [f"{name}: {status}" for name, status in seen.exits.items() if status != 0]
    return [*rows, Row("stopped with a status other than 0", f"{len(bad)}", bad)]


def _recovery(seen: Evidence) -> list[Row]:
    found = [
        Row(f"recovery of {kind}: median, worst of {len(took)}", f"{statistics.median(took):.2f} s, {max(took):.2f} s")
        for kind, took in sorted(seen.recovery.took.items())
    ]
    return [*found, Row("parts that never recovered", f"{len(seen.recovery.never)}", seen.recovery.never)]


def _listed(values: dict[str, int]) -> str:
    return ", ".join(f"{name}: {n}" for name, n in values.items()) or "none"


def table(rows: Sequence[Row]) -> str:
    width = max(len(row.what) for row in rows)
    lines = []
    for row in rows:
        lines.append(f"  {row.what:<{width}}  {row.value}{'   ✗' if row.faults else ''}")
        lines += [f"      {fault}" for fault in list(row.faults)[:SHOWN]]
    return "\n".join(lines)
