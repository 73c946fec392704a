"""The settings in print, and what `tango config show` prints."""

import re
import tomllib
from pathlib import Path
from types import ModuleType

import pytest

from tango_async import config
from tango_async.cli import settings_table

DOCUMENT = Path(__file__).parents[1] / "docs" / "settings.md"


def test_the_document_is_what_the_settings_say() -> None:
    assert DOCUMENT.read_text() == settings_table.markdown(), "run: tango config table > docs/settings.md"


def test_every_setting_is_in_the_table_once() -> None:
    listed = [f"{one.table}.{one.key}" for one in settings_table.settings()]
    settings = config.Settings()
    existing = [
        f"{table}.{key}" for table in settings.__struct_fields__ for key in getattr(settings, table).__struct_fields__
    ]
    assert listed == existing
    assert all(one.meaning.endswith((".", "…")) for one in settings_table.settings())


def test_every_default_is_in_words_or_may_stand_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "tango.toml"
    for one in settings_table.settings():
        if one.default not in ("unset", "empty") and "of the host" not in one.default:
            file.write_text(f"[{one.table}]\n{one.key} = {one.default.strip('`').partition(' (')[0]}\n")
            loaded, usual = config.load(file, environ={}), config.Settings()
            assert getattr(getattr(loaded, one.table), one.key) == getattr(getattr(usual, one.table), one.key)


def test_every_documented_variable_is_read() -> None:
    for one in settings_table.settings():
        variable = one.variable.strip("`").partition("`")[0]
        try:
            config.load(environ={variable: "%"})
        except config.ConfigError as e:
            assert "no such setting" not in str(e)


def test_what_is_shown_can_be_loaded_again_and_holds_no_secret(tmp_path: Path) -> None:
    settings = config.load(environ={"TANGO_KEYS": "hushhush", "TANGO_PORT": "3001", "TANGO_CALLBACK_SECRET": "pst"})
    shown = settings_table.as_toml(config.show(settings))
    assert "hushhush" not in shown and "pst" not in shown and "# keys is set" in shown
    assert tomllib.loads(shown)["http"]["port"] == 3001
    file = tmp_path / "tango.toml"
    file.write_text(shown)
    assert config.load(file, environ={}).sandbox == settings.sandbox


def test_a_setting_without_a_word_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(module: ModuleType) -> str:
        return Path(str(module.__file__)).read_text().replace('"""Begins every key."""', "")

    monkeypatch.setattr(settings_table.inspect, "getsource", without)
    with pytest.raises(LookupError, match=r"queue\.prefix"):
        list(settings_table.settings())


def test_courses_have_limits_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(
        "[retention]\noutput_days = 30\n"
        '[[retention.course]]\npattern = "*-15213-*"\noutput_days = 0\nupload_bytes = 5\n'
        '[[retention.course]]\npattern = "*"\n'
    )
    settings = config.load(file, environ={})
    assert [course.upload_bytes for course in settings.retention.course] == [5, None]
    file.write_text(settings_table.as_toml(config.show(settings)))
    assert config.load(file, environ={}) == settings


@pytest.mark.parametrize(
    "text",
    [
        "[[retention.course]]\noutput_days = 1",
        '[[retention.course]]\npattern = ""',
        '[[retention.course]]\npattern = "x"\ndays = 1',
        '[[retention.course]]\npattern = "x"\noutput_days = -1',
        "[retention]\nupload_bytes = -1",
    ],
)
def test_a_wrong_limit_of_a_course_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(text)
    with pytest.raises(config.ConfigError, match=r"retention"):
        config.load(file, environ={})


def test_images_have_limits_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(
        "[limits]\nmax_cores = 2\n"
        '[[limits.image]]\nname = "big/*"\nmax_cores = 8\nmemory_bytes = 2000000000\n'
        '[[limits.image]]\nname = "small"\nmax_memory_bytes = 1000000\n'
    )
    limits = config.load(file, environ={}).limits
    assert [limits.of(name).max_cores for name in ("big/one", "small", "other")] == [8, 2, 2]
    assert [limits.of(name).memory_bytes for name in ("big/one", "small", "other")] == [
        2_000_000_000,
        1_000_000,
        1024**3,
    ]
    file.write_text(settings_table.as_toml(config.show(config.load(file, environ={}))))
    assert config.load(file, environ={}).limits == limits


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[limits]\nmax_cores = 0.5", "limits.max_cores: less than limits.cores"),
        ("[limits]\nmemory_bytes = 5000000000", "limits.max_memory_bytes: less than"),
        ('[[limits.image]]\nname = "x"\ncores = 5', "limits.image: x: cores is more than max_cores, which is 4.0"),
        ('[[limits.image]]\nname = "x"\nmax_disk_bytes = 0', "limits"),
        ("[[limits.image]]\nmax_cores = 1", "limits"),
        ('[[limits.image]]\nname = "x"\nslots = 1', "limits"),
        ("[limits]\ncores = inf", "limits.cores"),
    ],
)
def test_a_wrong_limit_is_refused_by_name(tmp_path: Path, text: str, said: str) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(text)
    with pytest.raises(config.ConfigError, match=re.escape(said)):
        config.load(file, environ={})


def test_images_have_pools_of_their_own(tmp_path: Path) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(
        "[pools]\ndemand = 2\n"
        '[[pools.image]]\npattern = "15213-*"\nmin = 3\nmax = 8\nnetwork = false\n'
        '[[pools.image]]\npattern = "*"\ncores = 0.5\n'
    )
    settings = config.load(file, environ={})
    assert [table.network for table in settings.pools.image] == [False, None]
    file.write_text(settings_table.as_toml(config.show(settings)))
    assert config.load(file, environ={}) == settings


@pytest.mark.parametrize(
    "text",
    [
        "[[pools.image]]\nmin = 1",
        '[[pools.image]]\npattern = "x"\nmin = 1001',
        '[[pools.image]]\npattern = "x"\nmin = -1',
        '[[pools.image]]\npattern = "x"\nmin = 3\nmax = 2',
        '[pools]\nmax = 2\n[[pools.image]]\npattern = "x"\nmin = 3',
        '[[pools.image]]\npattern = "x"\ncores = inf',
        '[[pools.image]]\npattern = "x"\nmemory_bytes = 0',
        "[pools]\nidle_s = 0",
        "[pools]\nmax_idle = -1",
    ],
)
def test_a_wrong_pool_is_refused_by_name(tmp_path: Path, text: str) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(text)
    with pytest.raises(config.ConfigError, match=r"pools"):
        config.load(file, environ={})


@pytest.mark.parametrize(
    ("table", "said"),
    [
        ("weight = 0", "weight"),
        ("weight = nan", "weight"),
        ("weight = inf", "weight"),
        ("weight = -inf", "weight"),
        ('weight = "x"', "weight"),
        ("max_running = -1", "max_running"),
        ("max_running_each = -1", "max_running_each"),
        ("max_running = 1.5", "max_running"),
        ('resubmission = "never"', "resubmission"),
        ("wieght = 2", "wieght"),
    ],
)
def test_a_wrong_share_of_a_course_is_refused_by_name(tmp_path: Path, table: str, said: str) -> None:
    file = tmp_path / "tango.toml"
    file.write_text(f'[[share.course]]\npattern = "x"\n{table}\n')
    with pytest.raises(config.ConfigError, match=rf"share.*\b{said}\b"):
        config.load(file, environ={})
