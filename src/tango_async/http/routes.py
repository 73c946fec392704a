"""The map of the API. Every route answers with and without its last slash.

A redirect that adds the slash would turn a client's POST into a GET without its body.
"""

from __future__ import annotations

from aiohttp import web

from . import admin, courselabs, health, hosts, images, jobs, machines, metrics
from .middleware import Handler, for_admins


def _part(name: str) -> str:
    """Whatever stands between two slashes; what may be a name is decided in names.py."""
    return f"{{{name}:[^/]+}}"


_KEY, _LAB, _FILE, _ID, _NUMBER, _HOST = map(_part, ("key", "courselab", "output_file", "id", "number", "host"))
_IMAGE = "{image:.+}"
_IMAGE_OR_ALL = "{image:(?:/.*)?}"
_SLASH = "{slash:/?}"

ROUTES: list[tuple[str, str, Handler]] = [
    ("GET", "/", machines.root),
    ("GET", f"/open/{_KEY}/{_LAB}{_SLASH}", courselabs.open_lab),
    ("POST", f"/upload/{_KEY}/{_LAB}{_SLASH}", courselabs.upload),
    ("POST", f"/addJob/{_KEY}/{_LAB}{_SLASH}", jobs.add_job),
    ("GET", f"/poll/{_KEY}/{_LAB}/{_FILE}{_SLASH}", courselabs.poll),
    ("GET", f"/getPartialOutput/{_KEY}/{_ID}{_SLASH}", jobs.partial_output),
    ("POST", f"/cancel/{_KEY}/{_LAB}/{_FILE}{_SLASH}", jobs.cancel),
    ("POST", f"/cancel/{_KEY}/{_ID}{_SLASH}", jobs.cancel),
    ("GET POST", f"/jobs/{_KEY}/{_NUMBER}{_SLASH}", jobs.list_jobs),
    ("GET", f"/position/{_KEY}/{_ID}{_SLASH}", jobs.position),
    ("GET", f"/info/{_KEY}{_SLASH}", machines.info),
    ("GET", f"/pool/{_KEY}{_IMAGE_OR_ALL}", machines.pool),
    ("GET POST", f"/prealloc/{_KEY}/{_IMAGE}/{_NUMBER}{_SLASH}", for_admins(machines.prealloc)),
    ("POST", f"/scale/{_KEY}/{_part('low')}/{_part('high')}{_SLASH}", for_admins(machines.scale)),
    ("POST", f"/build/{_KEY}{_SLASH}", for_admins(machines.build)),
    ("GET", f"/callbacks/{_KEY}{_SLASH}", for_admins(admin.list_callbacks)),
    ("GET", f"/callbacks/{_KEY}/{_ID}{_SLASH}", for_admins(admin.show_callback)),
    ("POST", f"/callbacks/{_KEY}/{_ID}{_SLASH}", for_admins(admin.resend)),
    ("POST", f"/erase/{_KEY}{_SLASH}", for_admins(admin.erase)),
    ("GET", f"/hosts/{_KEY}{_SLASH}", for_admins(hosts.list_hosts)),
    ("POST", f"/hosts/{_KEY}/{_HOST}/pause{_SLASH}", for_admins(hosts.pause)),
    ("POST", f"/hosts/{_KEY}/{_HOST}/resume{_SLASH}", for_admins(hosts.resume)),
    ("POST", f"/hosts/{_KEY}/{_HOST}/slots/{_NUMBER}{_SLASH}", for_admins(hosts.set_slots)),
    ("GET", f"/images/{_KEY}{_SLASH}", for_admins(images.list_images)),
    ("POST", f"/images/{_KEY}/pull/{_IMAGE}", for_admins(images.pull)),
    ("POST", f"/images/{_KEY}/push/{_IMAGE}", for_admins(images.push)),
    ("GET HEAD", "/healthz", health.healthz),
    ("GET HEAD", "/readyz", health.readyz),
    ("GET", "/metrics", metrics.metrics),
]


def add_routes(app: web.Application) -> None:
    for methods, path, handler in ROUTES:
        resource = app.router.add_resource(path)
        for method in methods.split():
            resource.add_route(method, handler)
