"""The engine's frames, however the network cuts them; /etc/passwd, whatever is in it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from support.images import tar
from tango_async.config import Docker, Settings
from tango_async.errors import ConfigError
from tango_async.vmms.docker import LocalDocker
from tango_async.vmms.engine_streams import payload
from tango_async.vmms.images import NUMERIC_USER, user_of


@given(st.lists(st.binary(max_size=300)), st.lists(st.integers(1, 50)))
def test_frames_come_out_as_they_went_in(parts: list[bytes], cuts: list[int]) -> None:
    wire = b"".join(bytes([1 + i % 2, 0, 0, 0]) + len(part).to_bytes(4, "big") + part for i, part in enumerate(parts))
    pending, out = bytearray(), b""
    for cut in [*cuts, len(wire)]:
        pending += wire[:cut]
        wire = wire[cut:]
        out += payload(pending)
    assert out == b"".join(parts) and not pending


@given(st.binary())
def test_any_bytes_are_a_passwd_file(data: bytes) -> None:
    assert user_of(data) == NUMERIC_USER


@given(st.lists(st.text()), st.integers(0, 70_000), st.integers(0, 70_000))
def test_no_line_makes_a_job_root(lines: list[str], uid: int, gid: int) -> None:
    lines = [line for line in lines if not line.startswith("autograde:")]
    user = user_of(tar({"passwd": "\n".join([*lines, f"autograde:x:{uid}:{gid}:", ""]).encode()}))
    assert user in (f"{uid}:{gid}", NUMERIC_USER) and "0" not in user.split(":")


@pytest.mark.parametrize("host", ["docker:2376", "/var/run/docker.sock", "ssh://host"])
def test_what_is_no_address_of_an_engine_is_a_wrong_setting_and_not_waited_for(host: str) -> None:
    with pytest.raises(ConfigError, match=r"docker\.host"):
        LocalDocker(Settings(docker=Docker(host=host)), "install")
