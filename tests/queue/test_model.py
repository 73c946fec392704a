"""Random interleavings of every arrow, against a model that knows only the invariants of docs/states.md.

The model says what each answer must be; after every step all keys in Redis are compared with it. Time
is moved by writing older scores and times, so nothing sleeps.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

import hypothesis
import msgspec
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from support.jobs import claim_one, spec
from support.queue_model import (
    CAP,
    CLASSES,
    EACH,
    KEPT,
    LABS,
    LONG_S,
    MOST_RETRIES,
    SHARE,
    SUBMITTERS,
    Dispatcher,
    Held,
    Job,
)
from support.queue_snapshot import Snapshot, snapshot
from tango_async.config import Settings
from tango_async.model import Claim, JobSpec, Verdict
from tango_async.queue.history import Retired
from tango_async.queue.outbox import Resent
from tango_async.queue.redis import Answer, Cancelled, Queue

T = TypeVar("T")

NUMBERS = st.integers(0, 63)
"""Which job, hold or machine a step is about; see pick."""
WAYS = st.integers(0, 11)
"""Which way a step goes that has several."""


def one_of(*steps: str) -> Any:
    """One rule of several steps: hypothesis leaves out some rules in each run, and these belong together."""
    return rule(step=st.sampled_from(steps), n=NUMBERS, way=WAYS)


class Life(RuleBasedStateMachine):
    def __init__(self, settings: Settings) -> None:
        super().__init__()
        prefix = f"m{uuid4().hex[:12]}:"
        self.prefix = prefix
        self.settings = msgspec.structs.replace(
            settings,
            queue=msgspec.structs.replace(settings.queue, prefix=prefix, history_limit=KEPT, same_job_s=86_400.0),
            dispatcher=msgspec.structs.replace(
                settings.dispatcher, job_retries=MOST_RETRIES, lease_s=LONG_S, upkeep_s=LONG_S, adopt_grace_s=2 * LONG_S
            ),
            callbacks=msgspec.structs.replace(
                settings.callbacks, min_age_s=LONG_S, unanswered_s=LONG_S, timeout_s=LONG_S
            ),
            share=SHARE,
        )
        self.runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self.queue = Queue(self.settings)
        self.known: list[Job] = []
        self.holds: list[Held] = []
        self.machines: dict[str, Job] = {}
        self.dispatchers = {"a": Dispatcher(), "b": Dispatcher()}
        self.last_id = self.last_seq = self.added = self.charged = 0
        self.quiet = False

    def teardown(self) -> None:
        keys = self.ask(self.raw("KEYS", f"{self.prefix}*"))
        if keys:
            self.ask(self.raw("DEL", *keys))
        self.ask(self.queue.close())
        self.runner.close()

    def ask(self, work: Awaitable[T]) -> T:
        async def wait() -> T:
            return await work

        return self.runner.run(wait())

    def raw(self, command: str, *words: Any) -> Awaitable[Any]:
        return self.queue._server.command(command, *words)

    def key(self, name: object) -> str:
        return f"{self.prefix}{name}"

    @initialize(way=st.integers(0, 3))
    def begin(self, way: int) -> None:
        """Not in an empty house: of five jobs one is dead, one runs, one is assigned, two wait.

        The dead one's callback waits, its delivery is under way, or it was delivered or given up.
        """
        self.ask(self.queue.open())
        self.a_quiet_time_passes(0, 0)
        for kind in range(1, 6):
            self.add(0, kind)
        for _ in range(3):
            self.claim(0, 0)
        self.start(4, 0)
        self.end(8, 0)
        if way:
            self.callbacks_fall_due(0, 0)
            self.take_what_is_due(0, 0)
        if way > 1:
            self.a_delivery_is_over(0, way - 2)

    @one_of("add", "add_again", "add_repeated_by_the_connection", "answered", "cancel")
    def http(self, step: str, n: int, way: int) -> None:
        getattr(self, step)(n, way)

    @one_of("claim", "claim", "claim_again", "adopt")
    def dispatcher(self, step: str, n: int, way: int) -> None:
        getattr(self, step)(n, way)

    @one_of("start", "extend", "show", "end", "retry", "retry")
    def holder(self, step: str, n: int, way: int) -> None:
        getattr(self, step)(n, way)

    @one_of(
        "nobody_extends",
        "nobody_extends",
        "reap",
        "reap",
        "the_server_is_another",
        "the_clock_jumps",
        "forget_the_living",
    )
    def time(self, step: str, n: int, way: int) -> None:
        getattr(self, step)(n, way)

    @one_of("callbacks_fall_due", "take_what_is_due", "a_delivery_is_over", "a_delivery_is_over", "history_is_trimmed")
    def afterwards(self, step: str, n: int, way: int) -> None:
        getattr(self, step)(n, way)

    @one_of("resend", "resend", "retire", "retire", "forget_the_retired")
    def operator(self, step: str, n: int, way: int) -> None:
        getattr(self, step)(n, way)

    @staticmethod
    def pick(n: int, some: list[T], fit: Callable[[T], object]) -> T:
        """Mostly one for which something would change, the newest first; now and then any."""
        fitting = [one for one in some if fit(one)] if n % 4 < 3 else []
        among = fitting or some
        return among[-1 - n // 4 % len(among)]

    # -- tango-http --------------------------------------------------------------------------------

    def add(self, n: int, way: int) -> None:
        url = "http://127.0.0.1/cb" if way % 3 else None
        lab, courselab = list(LABS.items())[n // 3 % 2]
        one = spec(
            image=CLASSES[way % 2],
            lab=lab,
            courselab=courselab,
            output_name="xyz"[n % 3],
            callback_url=url,
            submitter=SUBMITTERS[n // 6 % 3],
            priority=(0, 0, 0, 5)[n // 16],
        )
        self._add(one, uuid4().hex)

    def _add(self, one: JobSpec, fingerprint: str) -> None:
        answer = self.ask(self.queue.add(one, fingerprint=fingerprint))
        assert answer.new
        assert answer.id > self.last_id
        self.last_id = answer.id
        self.added += 1
        job = Job(answer.id, one, fingerprint)
        pending = [
            j
            for j in self.known
            if j.who == job.who and (j.held or (j.state == "queued" and j.spec.image == one.image))
        ]
        job.order = (100 - one.priority) * 2**40 + job.id + 100 * len(pending) * bool(one.submitter)
        self.known.append(job)

    def add_again(self, n: int, way: int) -> None:
        """By a client that heard nothing: with a pin of its own."""
        job = self.pick(n, self.known, lambda j: j.due and not j.tried)
        again = msgspec.structs.replace(job.spec, pin=uuid4().hex)
        if not self._newest(job):
            return
        if job.state == "forgotten":
            self._add(again, job.fingerprint)
            return
        answer = self.ask(self.queue.add(again, fingerprint=job.fingerprint))
        assert (answer.id, answer.new) == (job.id, False)
        job.due = job.due and job.tried

    def add_repeated_by_the_connection(self, n: int, way: int) -> None:
        job = self.pick(n, self.known, lambda j: j.state == "queued")
        if job.state != "forgotten" and self._newest(job):
            answer = self.ask(self.queue.add(job.spec, fingerprint=job.fingerprint))
            assert (answer.id, answer.new) == (job.id, True)

    def _newest(self, job: Job) -> bool:
        return [j for j in self.known if j.fingerprint == job.fingerprint][-1] is job

    def answered(self, n: int, way: int) -> None:
        job = self.pick(n, self.known, lambda j: j.due)
        self.ask(self.queue.answered(job.id))
        job.due = job.due and job.tried

    def cancel(self, n: int, way: int) -> None:
        job = self.pick(n, self.known, lambda j: j.held)
        answer = self.ask(self.queue.cancel(job.id))
        if job.state == "queued":
            assert answer is Cancelled.CANCELLED
            job.die("cancelled")
        elif job.held:
            assert answer is Cancelled.REQUESTED
            job.cancel = True
        else:
            assert answer is (Cancelled.COMPLETED if job.state == "dead" else Cancelled.NOT_FOUND)

    # -- dispatchers -------------------------------------------------------------------------------

    def claim(self, n: int, way: int) -> None:
        instance = "ab"[n % 2]
        me = self.dispatchers[instance]
        me.request, me.classes, me.held = uuid4().hex, (CLASSES, CLASSES, CLASSES[:1], CLASSES[1:])[way % 4], None
        self._claim(instance)

    def claim_again(self, n: int, way: int) -> None:
        """The same request, since its answer was lost; nothing new if it was answered with a job."""
        instance = "ab"[n % 2]
        me = self.dispatchers[instance]
        if me.held is not None:
            found = self.ask(claim_one(self.queue, me.classes, instance=instance, request=me.request))
            assert found == (me.held.claim if me.held.present else None)
        elif me.request:
            self._claim(instance)

    def _claim(self, instance: str) -> None:
        me = self.dispatchers[instance]
        turns = [(float(vt), lane.decode(), kind) for kind in me.classes for lane, vt in self._lanes(kind)]
        found = self.ask(claim_one(self.queue, me.classes, instance=instance, request=me.request))
        offered = [j for j in self.offered() if j.spec.image in me.classes]
        assert {(lane, kind) for _, lane, kind in turns} == {(j.lane, j.spec.image) for j in offered}
        if not offered:
            assert found is None
            return
        assert found is not None
        # Of the lane that is furthest behind, the first; of two classes the one whose first came first.
        first = {(j.lane, j.spec.image): j for j in sorted(offered, key=lambda j: j.order, reverse=True)}
        least = min(vt for vt, *_ in turns)
        assert found.id in {first[lane, kind].id for vt, lane, kind in turns if vt == least}
        job = next(j for j in self.known if j.id == found.id)
        job.attempts += 1
        job.state = "assigned"
        assert (found.attempt, found.spec) == (job.attempts, job.spec)
        me.held = self._hold(job, found)

    def _lanes(self, kind: str) -> list[tuple[bytes, Any]]:
        return list(self.ask(self.raw("ZRANGE", self.key(f"lanes:{kind}"), 0, -1, "WITHSCORES")))

    def waiting(self) -> list[Job]:
        """Queued jobs that no better one of their submitter keeps back, nor its cap."""
        queued = [j for j in self.known if j.state == "queued"]
        best: dict[tuple[object, ...], Job] = {}
        for job in sorted(queued, key=lambda j: j.order):
            best.setdefault((job.who, job.spec.image), job)
        return [
            j
            for j in queued
            if not j.spec.submitter
            or (
                best[j.who, j.spec.image] is j
                and (j.lane != "test-each" or sum(o.held for o in self.known if o.who == j.who) < EACH)
            )
        ]

    def offered(self) -> list[Job]:
        """Those that no lane's cap keeps back either."""
        running = Counter(j.lane for j in self.known if j.held)
        return [j for j in self.waiting() if j.lane != "test-wide" or running[j.lane] < CAP]

    def _hold(self, job: Job, claim: Claim) -> Held:
        assert claim.seq > self.last_seq
        self.last_seq = job.seq = claim.seq
        job.overdue_s = 0.0
        self.holds.append(Held(job, claim))
        return self.holds[-1]

    def start(self, n: int, way: int) -> None:
        held = self.pick(n, self.holds, lambda h: h.present and h.job.state == "assigned")
        job = held.job
        machine = job.machine or uuid4().hex
        answer = self.ask(self.queue.start(held.claim, machine))
        if self._refused(held, answer):
            return
        assert answer is Answer.OK
        job.state, job.machine = "running", machine
        self.machines[machine] = job

    def _refused(self, held: Held, answer: Answer) -> bool:
        if not held.present:
            assert answer is Answer.STALE
        elif held.job.cancel:
            assert answer is Answer.CANCEL
        return not held.present or held.job.cancel

    def extend(self, n: int, way: int) -> None:
        some = [self.pick(n + 5 * i, self.holds, lambda h: h.present) for i in range(1 + way % 3)]
        answers = self.ask(self.queue.extend([(h.claim.id, h.claim.seq) for h in some]))
        for held, answer in zip(some, answers, strict=True):
            if not self._refused(held, answer):
                assert answer is Answer.OK
            if held.present:
                held.job.overdue_s = 0.0

    def show(self, n: int, way: int) -> None:
        held = self.pick(n, self.holds, lambda h: h.present)
        job = held.job
        data, offset = bytes([way, 255]), way if way < 2 else len(job.live)
        length = self.ask(self.queue.show(held.claim, offset, data))
        if not held.present:
            assert length == -1
            return
        job.live += data if offset == len(job.live) else b""
        assert length == len(job.live)

    def end(self, n: int, way: int) -> None:
        verdict = (Verdict.SUCCESS, Verdict.TIMEOUT, Verdict.CANCELLED)[way % 3]
        held = self.pick(n, self.holds, lambda h: h.present)
        job, ref = held.job, f"{held.claim.id}.{held.claim.seq}.{verdict}"
        answer = self.ask(self.queue.end(held.claim, verdict, "ended", ref))
        if held.present and job.cancel and verdict is not Verdict.CANCELLED:
            assert answer is Answer.CANCEL
        elif held.present:
            assert answer is Answer.OK
            job.die(verdict, ref, held.claim.seq)
        elif job.state == "dead" and job.ended_by == held.claim.seq:
            assert answer is Answer.DONE
        elif job.state == "dead" and job.seq == held.claim.seq:
            # Must be STALE: see test_a_holder_that_did_not_end_the_job_hears_stale.
            assert answer in (Answer.STALE, Answer.DONE)
        else:
            assert answer is Answer.STALE

    def retry(self, n: int, way: int) -> None:
        charged = way % 3 > 0
        held = self.pick(n, self.holds, lambda h: h.present)
        job = held.job
        answer = self.ask(self.queue.retry(held.claim, "why", charged=charged))
        if self._refused(held, answer):
            return
        if charged and job.retries >= MOST_RETRIES:
            assert answer is Answer.SPENT
            return
        assert answer is Answer.OK
        job.retries += charged
        self.charged += charged
        job.queue_again()

    def adopt(self, n: int, way: int) -> None:
        """Also of machines whose job has gone on without them."""
        machine, job = self.pick(n, list(self.machines.items()), lambda m: m[1].machine == m[0])
        found = self.ask(self.queue.adopt(machine, "ab"[way % 2]))
        if job.state != "running" or job.machine != machine:
            assert found is None
            return
        assert found is not None
        assert (found[0].id, found[0].attempt) == (job.id, job.attempts)
        self._hold(job, found[0])

    # -- time, the server, upkeep ------------------------------------------------------------------

    def nobody_extends(self, n: int, way: int) -> None:
        overdue_s = (1.0, 100_000.0)[way % 2]
        job = self.pick(n, self.known, lambda j: j.held)
        if job.held and job.overdue_s < overdue_s:
            job.overdue_s = overdue_s
            self.ask(self.raw("ZADD", self.key("held"), self._ago_ms(overdue_s), job.id))

    def _ago_ms(self, ago_s: float) -> int:
        return self.ask(self.queue.now_ms()) - int(ago_s * 1000)

    def the_server_is_another(self, n: int, way: int) -> None:
        """All connections are new, and so is the run id that they meet."""
        self.ask(self.raw("HSET", self.key("server"), "run_id", "of the one before"))
        self.ask(self.queue.close())
        self.queue = Queue(self.settings)
        self.ask(self.queue.open())
        self.quiet = True

    def the_clock_jumps(self, n: int, way: int) -> None:
        self.ask(self.raw("HSET", self.key("server"), "clock", self._ago_ms((36_000.0, -36_000.0)[way % 2])))
        self.quiet = True

    def a_quiet_time_passes(self, n: int, way: int) -> None:
        now = self._ago_ms(0)
        self.ask(self.raw("HSET", self.key("server"), "clock", now, "quiet_until", now))
        self.quiet = False

    def reap(self, n: int, way: int) -> None:
        if way % 2:
            self.a_quiet_time_passes(n, way)
        done = dict(self.ask(self.queue.reap()))
        grace_s = self.settings.dispatcher.adopt_grace_s
        lost = [j for j in self.known if j.held and j.overdue_s > (grace_s if j.state == "running" else 0)]
        assert set(done) == (set() if self.quiet else {j.id for j in lost})
        for job in lost if not self.quiet else []:
            spent = job.retries >= MOST_RETRIES
            assert done[job.id] is (job.cancel or spent)
            if done[job.id]:
                job.die("cancelled" if job.cancel else "gave_up")
                continue
            job.retries += 1
            self.charged += 1
            job.queue_again()

    def history_is_trimmed(self, n: int, way: int) -> None:
        order = [int(i) for i in self.ask(self.raw("ZRANGE", self.key("dead"), 0, -1))]
        pending = {j.id for j in self.known if j.callback == "pending"}
        old = [i for i in order[: max(0, len(order) - KEPT)] if i not in pending]
        found = self.ask(self.queue.expired())
        jobs = {j.id: j for j in self.known}
        assert found == [(i, jobs[i].output) for i in old]
        self.ask(self.queue.forget(old))
        for job_id in old:
            jobs[job_id].state = "forgotten"

    def forget_the_living(self, n: int, way: int) -> None:
        job = self.pick(n, self.known, lambda j: j.state != "dead")
        if job.state not in ("dead", "forgotten"):
            self.ask(self.queue.forget([job.id]))

    # -- callbacks ---------------------------------------------------------------------------------

    def callbacks_fall_due(self, n: int, way: int) -> None:
        for job in self.known:
            if job.callback == "pending":
                job.due = True
                self.ask(self.raw("ZADD", self.key("outbox"), self._ago_ms(1), job.id))

    def take_what_is_due(self, n: int, way: int) -> None:
        # However long this machine took since the last look, the clock was not set forward.
        self.ask(self.raw("HDEL", self.key("server"), "looked", "callbacks_from"))
        found = {due.id: due for due in self.ask(self.queue.due(100, LONG_S))}
        wanted = [j for j in self.known if j.callback == "pending" and j.due]
        assert set(found) == {j.id for j in wanted}
        for job in wanted:
            due = found[job.id]
            assert (due.verdict, due.output_ref, bool(due.note)) == (job.verdict, job.output, not job.output)
            job.due, job.tried = False, True

    def a_delivery_is_over(self, n: int, way: int) -> None:
        how = ("delivered", "given up", "pending")[way % 3]
        job = self.pick(n, self.known, lambda j: j.tried and (j.callback == "pending" or j.leaving))
        late = job.leaving and job.tried
        if not late and (not job.tried or job.callback != "pending"):
            return  # another deliverer was quicker: see test_a_delivery_that_came_late_changes_nothing
        if how == "delivered":
            self.ask(self.queue.delivered(job.id, "204"))
        else:
            self.ask(self.queue.defer(job.id, "503", None if how == "given up" else 600.0))
        if late:
            return
        job.callback, job.due = how, False

    # -- an operator, retention --------------------------------------------------------------------

    def resend(self, n: int, way: int) -> None:
        """Refused for ever once a job is retired; else what was delivered or given up is pending again."""
        job = self.pick(n, self.known, lambda j: j.leaving or j.callback in ("delivered", "given up"))
        answer = self.ask(self.queue.resend(job.id))
        if job.state == "forgotten" or job.leaving:
            assert answer is Resent.NOT_FOUND
        elif job.state != "dead":
            assert answer is Resent.NOT_ENDED
        elif not job.spec.callback_url:
            assert answer is Resent.NO_CALLBACK
        else:
            assert answer is Resent.OK
            job.callback, job.due = "pending", True

    def retire(self, n: int, way: int) -> None:
        """Jobs in one call, the living among them; who has a pending callback stays, `whatever` or not."""
        whatever = way % 3 == 0
        some = list(dict.fromkeys(self.pick(n + 5 * i, self.known, lambda j: j.state == "dead") for i in range(3)))
        found = {gone.id: gone for gone in self.ask(self.queue.retire([j.id for j in some], whatever=whatever))}
        stay = {j.id for j in some if j.state == "dead" and j.callback == "pending" and not whatever}
        assert found.keys() == {j.id for j in some} - stay
        for job in some:
            if job.state != "dead":
                assert found[job.id] == Retired(job.id, "", "", "", False)
            elif job.id in found:
                had = job.callback == "pending"
                assert found[job.id] == Retired(job.id, job.output, job.spec.lab, job.spec.output_name, had)
                job.leaving, job.due = True, False
                job.callback = "" if had else job.callback

    def forget_the_retired(self, n: int, way: int) -> None:
        job = self.pick(n, self.known, lambda j: j.leaving)
        if job.leaving:
            self.ask(self.queue.forget([job.id]))
            job.state = "forgotten"

    # -- what holds after every step ---------------------------------------------------------------

    @invariant()
    def redis_holds_what_was_answered_and_nothing_else(self) -> None:
        found = self.ask(snapshot(self.queue, self.prefix))
        self._every_job_is_in_exactly_its_keys(found)
        self._every_record_says_what_was_answered(found)
        self._every_callback_is_pending_or_told(found)
        self._nothing_else_is_there(found)

    def _every_job_is_in_exactly_its_keys(self, found: Snapshot) -> None:
        queued = [j for j in self.known if j.state == "queued"]
        assert found.zset("queued") == {j.id: j.id for j in queued}
        waiting = self.waiting()
        for place in {j.place for j in self.known}:
            here = [j for j in queued if j.place == place]
            assert found.zset(f"wait:{place}") == {j.id: j.order for j in here if j in waiting}
            assert found.zset(f"parked:{place}") == {j.id: j.order for j in here if j not in waiting}
        for lane in {j.lane for j in self.known}:
            assert found.numbers(f"running:{lane}") == {j.id for j in self.known if j.held and j.lane == lane}
            counts = Counter(j.spec.image for j in queued if j.lane == lane)
            assert found.hash(f"classes:{lane}") == {kind: str(n) for kind, n in counts.items()}
        counts = Counter(j.spec.image for j in queued)
        assert found.hash("classes") == {kind: str(n) for kind, n in counts.items()}
        offered = {(j.spec.image, j.lane) for j in self.offered()}
        for kind in CLASSES:
            turns = {lane.decode(): vt for lane, vt in found.values.get(f"lanes:{kind}", ())}
            assert turns.keys() == {lane for image, lane in offered if image == kind}
            assert all(float(found.hash(f"lane:{lane}").get("vt", 0)) == float(vt) for lane, vt in turns.items())
        overdue = {i: until < found.now_ms for i, until in found.zset("held").items()}
        assert overdue == {j.id: j.overdue_s > 0 for j in self.known if j.held}
        assert found.zset("dead").keys() == {j.id for j in self.known if j.state == "dead"}
        assert found.hash("machines") == {j.machine: str(j.id) for j in self.known if j.machine}
        alive = [j for j in self.known if j.state not in ("dead", "forgotten")]
        assert found.hash("pins") == {j.spec.pin: str(j.id) for j in alive}
        newest = {(j.spec.lab, j.spec.output_name): j for j in self.known}
        for lab in LABS:
            named = {n: str(j.id) for (at, n), j in newest.items() if at == lab and j.state != "forgotten"}
            assert found.hash(f"outputs:{lab}") == named

    def _every_record_says_what_was_answered(self, found: Snapshot) -> None:
        for job in self.known:
            record = found.hash(f"job:{job.id}")
            if job.state == "forgotten":
                assert record == {}
                continue
            said = [record[f] for f in ("state", "seq", "attempts", "retries")]
            assert said == [job.state, str(job.seq), str(job.attempts), str(job.retries)]
            assert (record.get("verdict", ""), record.get("output", "")) == (job.verdict, job.output)
            assert bool(record.get("note")) == (job.state == "dead" and not job.output)
            assert not job.held or record["machine"] == job.machine
            assert record.get("leaving", "") == ("1" if job.leaving else "")
            assert found.value(f"live:{job.id}") == job.live

    def _every_callback_is_pending_or_told(self, found: Snapshot) -> None:
        due = {i: at <= found.now_ms for i, at in found.zset("outbox").items()}
        assert due == {j.id: j.due for j in self.known if j.callback == "pending"}
        assert not {j.id for j in self.known if j.leaving} & due.keys(), (
            "a callback waits for an output that may be gone"
        )
        given_up = {j.id for j in self.known if j.callback == "given up" and j.state == "dead"}
        assert found.zset("unsent").keys() == given_up

    def _nothing_else_is_there(self, found: Snapshot) -> None:
        counters = {name: int(n) for name, n in found.hash("counters").items()}
        assert [counters.get(n, 0) for n in ("job_requests", "job_retries")] == [self.added, self.charged]
        ended = [n for name, n in counters.items() if name.startswith("ended_")]
        assert not ended or sum(ended) == sum(j.ended_by >= 0 for j in self.known), "not one death a job"
        stay = {"ids", "seq", "server", "counters", "queued", "held", "dead", "machines", "pins", "outbox", "unsent"}
        stay |= {*(f"outputs:{lab}" for lab in LABS), *(f"bell:{kind}" for kind in CLASSES), "vclock", "mean_ms"}
        waiting = [j for j in self.known if j.state == "queued"]
        if waiting:
            stay.add("classes")
        for job in waiting:
            stay |= {f"{what}:{job.place}" for what in ("wait", "parked")} | {f"classes:{job.lane}"}
            stay.add(f"lanes:{job.spec.image}")
            stay |= {f"mine:{job.place}\t{job.spec.submitter}", f"heads:{job.lane}\t{job.spec.submitter}"}
        for job in (j for j in self.known if j.held):
            stay |= {f"running:{job.lane}", f"running:{job.lane}\t{job.spec.submitter}"}
        stay |= {f"job:{j.id}" for j in self.known if j.state != "forgotten"}
        pass_by = {f"live:{j.id}" for j in self.known if j.live} | {f"same:{j.fingerprint}" for j in self.known}
        busy = {f"lane:{j.lane}" for j in self.known if j.held or j.state == "queued"}
        stay |= busy
        pass_by |= {f"lane:{j.lane}" for j in self.known} - busy
        pass_by |= {f"{what}:{instance}" for what in ("claim", "control") for instance in self.dispatchers}
        for name, expires in found.expires.items():
            assert name in (pass_by if expires else stay), f"{name} is left over"


def test_any_interleaving_keeps_every_job_in_one_place(settings: Settings) -> None:
    run_state_machine_as_test(
        lambda: Life(settings),
        settings=hypothesis.settings(
            max_examples=80,
            stateful_step_count=40,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )
