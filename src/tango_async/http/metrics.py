"""/metrics, in Prometheus's text format: this process's requests, and the queue and the dispatchers as published.

Labels are routes, hosts, back-ends, verdicts: never a path, a key, a course, a file or a job's name, and
nothing whose values a client could make up. The queue's numbers are the same at every copy of tango-http.
"""

from __future__ import annotations

import asyncio
import ipaddress
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import suppress

from aiohttp import hdrs, web
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from .. import __version__
from ..errors import QueueUnavailable
from ..model import DispatcherRecord
from ..queue.figures import Figures
from ..vitals import Vitals
from . import answers, wire
from .fleet import lives
from .middleware import Handler
from .service import Service, service_of

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

BUCKETS_S = (0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0)
GONE_S = 86_400.0
"""A dispatcher that has been silent for so long was taken out of service, and is no longer shown."""

_FORWARDED = ("X-Forwarded-For", "X-Real-IP", "Forwarded", "Via")

_FAULTS = ("waitvm_timeouts", "runjob_timeouts", "runjob_errors", "copyin_errors", "copyout_errors")
_EVENTS = {
    "job_requests": ("tango_jobs_added", "Jobs accepted."),
    "claims": ("tango_claims", "Jobs taken by a dispatcher; more than were added, by those that were tried again."),
    "job_retries": ("tango_job_retries", "Times a job was queued again after a fault of the infrastructure."),
    "adoptions": ("tango_adoptions", "Running jobs taken over from a dispatcher that died."),
    "leases_lost": ("tango_leases_lost", "Held jobs that no dispatcher extended, queued again or given up."),
}


class Metrics:
    """What this process counts of itself, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry(auto_describe=False)
        self.vitals = Vitals()
        ProcessCollector(registry=registry)
        Gauge("tango_build_info", "Always 1.", ["version"], registry=registry).labels(__version__).set(1)
        lag = Gauge(
            "tango_event_loop_lag_seconds", "How late the loop was at worst in the last minute.", registry=registry
        )
        lag.set_function(lambda: self.vitals.lag_s)
        self.requests = Counter(
            "tango_http_requests",
            "Requests answered, or cut off by the client.",
            ["route", "status"],
            registry=registry,
        )
        self.seconds = Histogram(
            "tango_http_request_seconds", "Time to answer.", ["route"], buckets=BUCKETS_S, registry=registry
        )
        self.in_progress = Gauge("tango_http_requests_in_progress", "Requests under way.", registry=registry)


METRICS = web.AppKey("metrics", Metrics)


async def feel(app: web.Application) -> AsyncIterator[None]:
    """A cleanup context: the loop's lag is watched while the application runs."""
    watch = asyncio.create_task(app[METRICS].vitals.watch())
    yield
    watch.cancel()


@web.middleware
async def measure(request: web.Request, handler: Handler) -> web.StreamResponse:
    metrics, began = request.app[METRICS], time.perf_counter()
    route, status = _route(request), "cut"
    try:
        with metrics.in_progress.track_inprogress():
            response = await handler(request)
        status = str(response.status)
        return response
    finally:
        metrics.requests.labels(route, status).inc()
        metrics.seconds.labels(route).observe(time.perf_counter() - began)


def _route(request: web.Request) -> str:
    """The route as it is written in routes.py: the path itself holds the key."""
    resource = request.match_info.route.resource
    return resource.canonical.removesuffix("{slash}") if resource is not None else "none"


async def metrics(request: web.Request) -> web.Response:
    """For this machine's own processes; for others with a key as bearer token."""
    service = service_of(request)
    if not _may_see(request, service):
        return answers.json(wire.failure("Key not recognized"), status=403)
    page = generate_latest(request.app[METRICS].registry) + generate_latest(await _snapshot(service))
    return web.Response(body=page, headers={hdrs.CONTENT_TYPE: CONTENT_TYPE})


def _may_see(request: web.Request, service: Service) -> bool:
    return service.keys.bearer(request) is not None or _is_local(request)


def _is_local(request: web.Request) -> bool:
    """From this machine, and not for somebody else: a proxy's requests all come from where it is."""
    if any(name in request.headers for name in _FORWARDED):
        return False
    try:
        address = ipaddress.ip_address(request.remote or "")
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return (mapped or address).is_loopback


class _Snapshot(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        return self._families


async def _snapshot(service: Service) -> CollectorRegistry:
    families = [await asyncio.to_thread(_store, service)]
    try:
        figures, dispatchers = await asyncio.gather(service.queue.figures(), service.fleet.all())
    except QueueUnavailable:
        families += [_gauge("tango_queue_up", "Whether Redis answers.", 0)]
    else:
        families += [_gauge("tango_queue_up", "Whether Redis answers.", 1)]
        families += [*_queue(figures), *_events(figures), *_dispatchers(dispatchers)]
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Snapshot(families))
    return registry


def _gauge(name: str, about: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, about, value=value)


def _store(service: Service) -> Metric:
    family = GaugeMetricFamily("tango_store_free_bytes", "Space left where the courselabs are.")
    if service.settings.store.url:
        return family  # a bucket does not tell, and has no end
    with suppress(OSError):  # then there is no sample at all; a zero would be a guess
        family.add_metric([], shutil.disk_usage(service.settings.store.labs).free)
    return family


def _queue(f: Figures) -> Iterator[Metric]:
    jobs = GaugeMetricFamily("tango_jobs", "Jobs now; dead ones are the history.", labels=["state"])
    for state, number in (("queued", f.queued), ("held", f.held), ("dead", f.dead)):
        jobs.add_metric([state], number)
    yield jobs
    yield _gauge("tango_queue_wait_seconds", "How long the first job in the queue has waited.", f.first_waits_s)
    yield _gauge("tango_leases_lapsed", "Held jobs whose lease is over, up to 100.", f.lapsed)
    yield _gauge("tango_outbox", "Callbacks to deliver, now or later.", f.outbox)
    yield _gauge("tango_outbox_overdue_seconds", "How long the first callback has been due.", f.overdue_s)
    yield _gauge("tango_callbacks_unsent", "Callbacks given up, of jobs still remembered.", f.unsent)
    yield _gauge("tango_redis_memory_bytes", "Memory that Redis uses.", f.memory_bytes)
    yield _gauge("tango_redis_memory_limit_bytes", "Its maxmemory; 0 is none.", f.memory_limit_bytes)


def _events(f: Figures) -> Iterator[Metric]:
    for counter, (name, about) in _EVENTS.items():
        yield CounterMetricFamily(name, about, value=f.counters.get(counter, 0))
    faults = CounterMetricFamily("tango_job_faults", "Faults of machines and engines.", labels=["kind"])
    for kind in _FAULTS:
        faults.add_metric([kind], f.counters.get(kind, 0))
    yield faults
    yield _by("tango_jobs_ended", "Jobs that ended.", "verdict", "ended_", f)
    yield _by("tango_callbacks", "Deliveries tried.", "result", "callbacks_", f)


def _by(name: str, about: str, label: str, prefix: str, f: Figures) -> Metric:
    """One family of all counters that begin alike."""
    family = CounterMetricFamily(name, about, labels=[label])
    for counter, value in sorted(f.counters.items()):
        if counter.startswith(prefix):
            family.add_metric([counter.removeprefix(prefix)], value)
    return family


def _dispatchers(records: Sequence[DispatcherRecord]) -> Iterator[Metric]:
    shown = [record for record in records if record.age_s < GONE_S]
    living = [record for record in shown if lives(record)]
    yield _each("tango_dispatcher_up", "Whether it has published itself lately.", lives, shown)
    yield _each("tango_dispatcher_beat_age_seconds", "Since it last did.", lambda r: r.age_s, shown)
    yield _each(
        "tango_dispatcher_healthy", "Whether its engine is; else it claims nothing.", lambda r: r.healthy, living
    )
    yield _each("tango_dispatcher_paused", "By order: it claims nothing.", lambda r: r.paused, living)
    yield _each(
        "tango_dispatcher_shut", "Images, or 1 for all, of which it takes no jobs since they failed.", _shut, living
    )
    yield _each("tango_dispatcher_slots", "Jobs it runs at most.", lambda r: r.slots, living)
    yield _each("tango_dispatcher_busy", "Jobs it runs.", lambda r: r.busy, living)
    yield _each("tango_dispatcher_attempts", "Attempts that ended.", lambda r: r.ended, living, CounterMetricFamily)
    yield _each("tango_dispatcher_machines_free", "Prepared machines.", _machines_free, living)
    yield _each("tango_dispatcher_pools_failing", "Images of which no machine could be prepared.", _failing, living)
    yield _each("tango_dispatcher_rss_bytes", "Its own memory.", lambda r: r.rss_bytes, living)
    yield _each("tango_dispatcher_event_loop_lag_seconds", "At worst in the last minute.", lambda r: r.lag_s, living)


def _machines_free(record: DispatcherRecord) -> int:
    return sum(len(pool.free) for pool in record.pools.values())


def _shut(record: DispatcherRecord) -> int:
    return len(record.shut)


def _failing(record: DispatcherRecord) -> int:
    return sum(bool(pool.problem) for pool in record.pools.values())


def _each(
    name: str,
    about: str,
    value: Callable[[DispatcherRecord], float],
    records: Iterable[DispatcherRecord],
    kind: type[GaugeMetricFamily | CounterMetricFamily] = GaugeMetricFamily,
) -> Metric:
    family = kind(name, about, labels=["host", "install"])
    for record in records:
        family.add_metric([record.host, record.install], float(value(record)))
    return family
