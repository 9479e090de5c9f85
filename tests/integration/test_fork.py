"""A child that is forked in the middle of a run: it holds nothing of it, and cannot touch it."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import subprocess
import sys
import traceback
from typing import TYPE_CHECKING

import pytest

from dispatcher.checkpoint.base import Plan
from dispatcher.checkpoint.lease import Locks, is_locked
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.errors import CheckpointIo
from dispatcher.model import Lane
from dispatcher.plan import cut
from tests.e2e.conftest import Emulators, Site, emulate, site

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["emulate", "site"]

RUN_AND_FORK = """
import asyncio, os, sys, time
from dispatcher import BatchSettled, Manifest, Settings, open_dispatcher

child = 0

def hook(event):
    global child
    if isinstance(event, BatchSettled) and not child:
        child = os.fork()
        if not child:
            os.closerange(0, 3)
            time.sleep(60)
            os._exit(0)
        print(child, flush=True)

async def main():
    async with open_dispatcher(Settings(state_dir=sys.argv[2], metrics="0")) as dispatcher:
        print(dispatcher.metrics_url.split(":")[2].split("/")[0])
        await dispatcher.run(Manifest.load(sys.argv[1]), on_event=hook)

asyncio.run(main())
"""
PLAN = Plan(
    plan_id="0" * 32,
    run="r",
    command="reboot",
    region="us-west-2",
    intent_digest="",
    selection_digest="",
    inventory_digest="",
    planned_at=0.0,
)


def in_child(work: Callable[[], None]) -> int:
    """Fork, do `work` in the child and return its exit code: 0 where nothing was raised."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    try:
        work()
    except BaseException:  # noqa: BLE001 - the child must end here
        traceback.print_exc()
        os._exit(1)
    os._exit(0)


def test_a_child_does_not_outlive_its_parents_lock(site: Site, emulate: Emulators) -> None:
    """The parent is killed, its child lives on: another process takes run and port over at once."""
    service = emulate(3000, latency_s=0.02)
    limits = {"rate_per_s": 50, "burst": 1, "max_in_flight": 8}
    manifest = site.manifest(site.ids(3000), limits=limits, endpoint_url=service.url)
    parent = subprocess.Popen(
        [sys.executable, "-c", RUN_AND_FORK, manifest, str(site.state)],
        stdout=subprocess.PIPE, text=True, cwd=site.folder, env=site.env,
    )  # fmt: skip
    site.live.append(parent)
    assert parent.stdout is not None
    port, child = int(parent.stdout.readline()), int(parent.stdout.readline())
    try:
        parent.kill()
        parent.wait(10)
        done = site.do("resume", "fleet", "--limit", 20, "--metrics", port)
        assert done.code == 0, done.err
        assert max(service.tasks_of_devices().values()) == 1
        os.kill(child, 0)
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_child_does_not_free_its_parents_lock(tmp_path: Path) -> None:
    """What the child closes is its own; releasing there closes no stranger's file either."""
    lock = tmp_path / "run.lock"
    locks = Locks([lock])
    locks.take()

    def work() -> None:
        fd = os.open(os.devnull, os.O_RDONLY)  # takes the number that the lock had
        locks.release()
        os.fstat(fd)

    assert in_child(work) == 0
    assert is_locked(lock)
    locks.release()
    assert not is_locked(lock)


def test_a_copy_of_a_lock_in_a_process_that_is_being_started_holds_nothing(tmp_path: Path) -> None:
    """Between its fork and its first instruction it has all our files, and no hook of ours runs there."""
    lock = tmp_path / "run.lock"
    locks = Locks([lock])
    locks.take()
    copies = [os.dup(fd) for fd in locks._fds]  # as a fork makes them: the same open files
    locks.release()
    assert not is_locked(lock)
    for fd in copies:
        os.close(fd)


def test_a_lock_that_cannot_be_dropped_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network file system may fail there: closing has to do, and nothing is raised."""
    paths = [tmp_path / "run.lock", tmp_path / "other.lock"]
    locks = Locks(paths)
    locks.take()
    real = fcntl.flock

    def flock(fd: int, what: int) -> None:
        if what == fcntl.LOCK_UN:
            raise OSError(errno.EIO, "Input/output error")
        real(fd, what)

    monkeypatch.setattr(fcntl, "flock", flock)
    locks.release()
    assert [is_locked(path) for path in paths] == [False, False]


def test_a_checkpoint_is_refused_in_a_child(tmp_path: Path) -> None:
    """One line, whatever is asked of it; the parent goes on as if nothing had been."""
    store = SqliteCheckpoint.open(tmp_path / "run.db", create=True)
    store.write_plan(PLAN, [Lane(index=0, region="us-west-2")], cut([["a", "b"]]))
    store.acquire("{}", now=0.0)

    def work() -> None:
        for use in (
            store.counts,
            lambda: store.claim(limit=1, max_devices=None, now=1.0),
            lambda: store.release(now=1.0),
        ):
            with pytest.raises(CheckpointIo, match=r"^[^\n]*another process[^\n]*$") as refused:
                use()
            assert refused.value.hint
        store.close()

    assert in_child(work) == 0
    assert [batch.targets for batch in store.claim(limit=5, max_devices=None, now=1.0)] == [("a", "b")]
    store.close()


def test_a_child_ends_without_closing_the_database(tmp_path: Path) -> None:
    """Its garbage is collected and the file stays open: a close would spoil the parent's transaction."""
    program = f"""
import os, sys
from pathlib import Path
from tests.integration.test_fork import PLAN
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.model import Lane
from dispatcher.plan import cut
store = SqliteCheckpoint.open(Path({str(tmp_path / "run.db")!r}), create=True)
store.write_plan(PLAN, [Lane(index=0, region="us-west-2")], cut([["a"]]))
store.acquire("{{}}", now=0.0)
database = os.stat({str(tmp_path / "run.db")!r}).st_ino
child = os.fork()
if not child:
    import gc
    del store
    gc.collect()
    held = [os.stat(f"/proc/self/fd/{{fd}}").st_ino for fd in os.listdir("/proc/self/fd")
            if os.path.exists(f"/proc/self/fd/{{fd}}")]
    os._exit(0 if database in held else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30)
    assert (done.stdout, done.stderr) == ("0\n", "")
