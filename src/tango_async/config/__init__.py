"""Every setting, from `tango.toml` and TANGO_* variables, frozen and checked at start.

The environment wins over the file. docs/settings.md is generated from the docstrings in service.py,
hosts.py and backends.py, so a setting without one does not pass the tests.
"""

from ..errors import ConfigError
from .backends import Docker, DockerHost, DockerRegistry, Ec2, HostKeys, Sandbox, Tashi
from .groups import LEAST_PRIORITY, MOST_PRIORITY, Group
from .hosts import SIZES, Dispatcher, ImageLimits, ImagePool, Limits, Pools
from .service import (
    MOST_REDIRECTS,
    S3,
    Callbacks,
    CourseRetention,
    CourseShare,
    Encryption,
    Http,
    Queue,
    Resubmission,
    Retention,
    Share,
    Store,
)
from .settings import SECRETS, VARIABLES, Settings, key_problem, load, show

__all__ = [
    "LEAST_PRIORITY",
    "MOST_PRIORITY",
    "MOST_REDIRECTS",
    "S3",
    "SECRETS",
    "SIZES",
    "VARIABLES",
    "Callbacks",
    "ConfigError",
    "CourseRetention",
    "CourseShare",
    "Dispatcher",
    "Docker",
    "DockerHost",
    "DockerRegistry",
    "Ec2",
    "Encryption",
    "Group",
    "HostKeys",
    "Http",
    "ImageLimits",
    "ImagePool",
    "Limits",
    "Pools",
    "Queue",
    "Resubmission",
    "Retention",
    "Sandbox",
    "Settings",
    "Share",
    "Store",
    "Tashi",
    "key_problem",
    "load",
    "show",
]
