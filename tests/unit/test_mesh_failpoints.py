"""Failpoints: off unless a test turns them on, refused in production, taken once."""

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mesh import failpoints
from mesh.settings import SettingsError


@pytest.fixture(autouse=True)
def off_again() -> Iterator[None]:
    yield
    failpoints.configure({})


def test_a_production_start_refuses_failpoints(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="MESH_FAILPOINTS_DIR"):
        failpoints.configure({"MESH_FAILPOINTS_DIR": str(tmp_path)})
    with pytest.raises(SettingsError, match="MESH_ENVIRONMENT"):
        failpoints.configure({"MESH_ENVIRONMENT": "staging"})


def test_a_service_with_failpoints_in_production_stops_at_start_with_one_line(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "balance_svc", "serve"],
        env={"PYTHONPATH": ".:gen", "MESH_FAILPOINTS_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "MESH_FAILPOINTS_DIR" in done.stderr


def test_an_armed_point_is_taken_once_and_says_by_whom(tmp_path: Path) -> None:
    environment = {"MESH_ENVIRONMENT": "test", "MESH_FAILPOINTS_DIR": str(tmp_path)}
    (tmp_path / "some.point").write_text("kill")
    program = "from mesh import failpoints as f; f.configure(); f.hit('another.point'); f.hit('some.point')"
    child = subprocess.Popen([sys.executable, "-c", program], env=environment | {"PYTHONPATH": ".:gen"})
    assert child.wait(timeout=60) == -signal.SIGKILL
    assert [path.name for path in tmp_path.iterdir()] == [f"some.point.fired.{child.pid}"]
    failpoints.configure(environment)
    failpoints.hit("some.point")


def test_without_a_folder_nothing_is_looked_at(tmp_path: Path) -> None:
    failpoints.configure({"MESH_ENVIRONMENT": "test"})
    failpoints.hit("some.point")
