"""The test stand's processes, and the cores that they stay on."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from outrider.errors import ServiceUnavailable
from outrider_bench.harness.hosts import Hosts, available_cores, bound_to
from outrider_bench.harness.stand import Models, Stand


@pytest.mark.parametrize(
    ("num_cores", "available", "target", "draft"),
    [
        (1, [0, 1], {0}, {1}),
        (2, [0, 2, 4, 6, 8], {0, 2}, {4, 6}),
        (2, [0, 1], None, None),
        (1, [], None, None),
    ],
)
def test_hosts_share_cores_only_where_there_are_too_few(
    num_cores: int, available: list[int], target: set[int] | None, draft: set[int] | None
) -> None:
    hosts = Hosts.of(num_cores, available)
    assert (hosts.target, hosts.draft) == (target, draft)


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="processes cannot be bound to cores")
def test_children_stay_on_the_cores_and_the_parent_does_not() -> None:
    before = available_cores()
    with bound_to({before[-1]}):
        program = "import os; print(*os.sched_getaffinity(0))"
        finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert finished.stdout.split() == [str(before[-1])]
    assert available_cores() == before
    with bound_to(None):
        assert available_cores() == before


# Serves until its parent is gone, or dies of a wish that its model's name holds.
SERVICE = """
import os, sys
from pathlib import Path
module = Path(sys.argv[0]).stem
arguments = dict(zip(sys.argv[1::2], sys.argv[2::2]))
Path(f"{module}.pid").write_text(str(os.getpid()))
Path(f"{module}.cores").write_text(str(sorted(os.sched_getaffinity(0))))
if arguments.get("--model") == "dies":
    sys.exit("error: no memory")
print("ready 127.0.0.1:1", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with stand-ins of the three services, found before the real ones."""
    for name in ("draft_service", "target_service", "orchestrator"):
        (tmp_path / f"{name}.py").write_text(SERVICE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def start(draft: str) -> None:
    cores = available_cores()
    hosts = Hosts(frozenset(cores[:1]), frozenset(cores[-1:]))
    with Stand(Models("big", draft), hosts, lambda what: None):
        pass


@pytest.mark.process
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
class TestStand:
    def test_a_service_that_does_not_start_is_named_and_the_others_end(
        self, services: Path
    ) -> None:
        with pytest.raises(ServiceUnavailable, match=r"draft_service ended.* no memory"):
            start("dies")
        assert not Path("/proc", (services / "target_service.pid").read_text()).exists()

    def test_services_are_on_the_cores_of_their_hosts(self, services: Path) -> None:
        # The stand-in of the orchestrator answers nothing.
        with pytest.raises(ServiceUnavailable):
            start("small")
        cores = available_cores()
        found = {path.stem: path.read_text() for path in services.glob("*.cores")}
        on_target_host, on_draft_host = str(cores[:1]), str(cores[-1:])
        assert found == {
            "target_service": on_target_host,
            "orchestrator": on_target_host,
            "draft_service": on_draft_host,
        }
        for path in services.glob("*.pid"):
            assert not Path("/proc", path.read_text()).exists()
