"""Settings: a wrong one is named in one line, before anything starts."""

from dataclasses import dataclass

import pytest

from mesh.settings import SettingsError, read_settings, setting


@dataclass(frozen=True)
class Example:
    url: str = setting("where", secret=True)
    pool_max: int = setting("most connections", default=8, minimum=1, maximum=100)
    rate: float = setting("per second", default=1.5, env="SHARED_RATE")
    strict: bool = setting("whether", default=True)


def test_values_are_read_by_prefix_type_and_default() -> None:
    got = read_settings(Example, "X_", {"X_URL": "u", "X_POOL_MAX": "3", "SHARED_RATE": "2", "X_STRICT": "no"})
    assert got == Example(url="u", pool_max=3, rate=2.0, strict=False)
    assert read_settings(Example, "X_", {"X_URL": "u", "X_POOL_MAX": ""}).pool_max == 8


@pytest.mark.parametrize(
    ("env", "named"),
    [
        ({}, "X_URL"),
        ({"X_URL": "u", "X_POOL_MAX": "many"}, "X_POOL_MAX"),
        ({"X_URL": "u", "X_POOL_MAX": "0"}, "X_POOL_MAX"),
        ({"X_URL": "u", "X_POOL_MAX": "101"}, "X_POOL_MAX"),
        ({"X_URL": "u", "SHARED_RATE": "x"}, "SHARED_RATE"),
        ({"X_URL": "u", "X_STRICT": "perhaps"}, "X_STRICT"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(env: dict[str, str], named: str) -> None:
    with pytest.raises(SettingsError) as caught:
        read_settings(Example, "X_", env)
    assert str(caught.value).startswith(named + ":")
    assert "\n" not in str(caught.value)


def test_a_secret_is_not_shown() -> None:
    assert "hunter2" not in repr(read_settings(Example, "X_", {"X_URL": "hunter2"}))


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://inventory:a:17@127.0.0.1:7432/inventory?sslmode=verify-full",
        "postgresql://u:hunter%402@one:1,two:2/db",
        "postgresql:///db?host=/run/postgresql",
        "redis://:hunter2@[::1]:6379/0",
        "rediss://inventory:hunter2@redis.example/0",
        "amqps://purchase:hunter2@mq.example:5671/",
        "postgresql://",
    ],
)
def test_a_url_with_a_password_is_taken_as_it_is(url: str) -> None:
    assert read_settings(Example, "X_", {"X_URL": url}).url == url


@pytest.mark.parametrize(
    "password", ["hun/ter2", "hun?ter2", "hun#ter2", "hun@ter2", "hun%ter2", "hun[ter2", "hun ter2"]
)
@pytest.mark.parametrize("scheme", ["postgresql", "redis", "amqp"])
def test_a_password_that_breaks_its_url_is_not_shown_by_a_driver(scheme: str, password: str) -> None:
    """They do: failed to resolve host 'ter2@127.0.0.1', port could not be cast to integer value as 'hun'."""
    with pytest.raises(SettingsError, match="X_URL: its value is no URL") as caught:
        read_settings(Example, "X_", {"X_URL": f"{scheme}://user:{password}@127.0.0.1:5432/db"})
    assert "hun" not in str(caught.value)
    assert "ter2" not in str(caught.value)
