"""Where callbacks may go."""

import pytest

from tango_async.destinations import allowance


@pytest.mark.parametrize(
    ("allow", "url", "allowed"),
    [
        ((), "http://anything.example/x", True),
        ((), "ftp://anything.example/x", False),
        (("autolab.example",), "https://autolab.example/x", True),
        (("autolab.example",), "https://evil-autolab.example/x", False),
        (("*.example",), "https://a.b.example/x", True),
        (("*.example",), "https://example/x", False),
        (("autolab.example:8443",), "https://autolab.example/x", False),
        (("autolab.example:443",), "https://AUTOLAB.example/x", True),
        (("autolab.example",), "https://autolab.example@evil.example/x", False),
        (("autolab.example",), "https://autolab.example.evil.example/x", False),
        (("autolab.example",), "https://evil.example/?autolab.example", False),
        (("autolab.example",), "https://autolab.example:99999/x", False),
        ((), "https://autolab.example:99999/x", False),
        ((), "http://[::1/x", False),
        ((), "http:///x", False),
        (("[::1]:8080",), "http://[::1]:8080/x", True),
        (("[::1]",), "http://[::1]/x", True),
        (("[::1]",), "http://[::2]/x", False),
    ],
)
def test_destinations_are_those_that_are_listed(allow: tuple[str, ...], url: str, allowed: bool) -> None:
    assert allowance(allow)(url) is allowed
