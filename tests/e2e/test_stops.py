"""Signals, rivals, and a second process at the same run."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Site


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_run_gently(site: Site, emulate: Emulators, number: signal.Signals) -> None:
    """130 or 143, calls in flight come home, nothing is in doubt, and the rest is sent by the next run."""
    service = emulate(600, latency_s=0.1)
    manifest = site.manifest(site.ids(600), limits={"rate_per_s": 50, "burst": 5, "attempt_timeout_s": 2})
    process = site.start_run(manifest, service)
    site.signal_after(process, service, 12, number)
    stopped = site.checked(site.end(process, timeout=4))
    assert stopped.code == 128 + number
    assert "dispatcher resume fleet" in stopped.errors[0]
    assert (stopped.summary["in_doubt"], stopped.summary["rejected"]) == (0, 0)
    assert 0 < stopped.summary["accepted"] < 600
    site.judge(service, stopped.summary)
    resumed = site.checked(site.do("resume", "fleet", "--rate", 400, "--json"))
    assert resumed.code == 0, resumed.err
    assert len(service.calls) == 60
    site.judge(service, resumed.summary)


def test_a_second_signal_ends_it_at_once(site: Site, emulate: Emulators) -> None:
    """The second Ctrl-C does not wait for a service that does not answer; the doubt is on record."""
    service = emulate(200, latency_s=30.0)
    manifest = site.manifest(site.ids(200), limits={"attempt_timeout_s": 25})
    process = site.start_run(manifest, service)
    site.signal_after(process, service, 1 + 8, signal.SIGINT)  # the look for earlier tasks is a call too
    line = ""
    while "stopping" not in line:
        assert process.stderr is not None
        line = process.stderr.readline()
        assert line, "it ended after the first signal"
    process.send_signal(signal.SIGINT)
    stopped = site.checked(site.end(process, timeout=4))
    assert stopped.code == 130
    # Eight were sent; of the claim they came from, one batch more was not.
    assert stopped.summary["in_doubt"] in (80, 90)
    assert len(service.calls) == 8
    site.judge(service, stopped.summary)


def test_a_signal_while_planning_ends_it(site: Site, emulate: Emulators) -> None:
    """Nothing was sent, and the code says who stopped it."""
    service = emulate()
    manifest = site.manifest([f"smd-{number:016d}" for number in range(300_000)])
    process = site.start_run(manifest, service)
    site.wait_until(lambda: site.checkpoint.exists() or process.poll() is not None)
    process.send_signal(signal.SIGTERM)
    stopped = site.checked(site.end(process, timeout=10))
    assert stopped.code == 143
    assert service.calls == []


@pytest.mark.parametrize("path", [None, "other.db"])
def test_two_runners_are_one_too_many(site: Site, emulate: Emulators, path: str | None) -> None:
    """The second ends with 4 and one line, through another checkpoint path too, and nothing is sent twice."""
    service = emulate(400, latency_s=0.05)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 30, "burst": 5})
    first = site.start_run(manifest, service)
    site.wait_until(lambda: len(service.calls) > 3)
    more = [] if path is None else ["--checkpoint", str(site.folder / path)]
    second = site.run(manifest, service, *more)
    assert (second.code, second.err.count("\n")) == (4, 1), second.err
    assert "another runner" in second.err
    done = site.checked(site.end(first))
    assert done.code == 0, done.err
    assert len(service.calls) == 40
    site.judge(service, done.summary)


def test_two_runners_from_the_start(site: Site, emulate: Emulators) -> None:
    """Of four started at once one sends; the others end with 4, or with 0 as it had finished."""
    service = emulate(200, latency_s=0.05)
    manifest = site.manifest(site.ids(200))
    started = [site.start_run(manifest, service) for _ in range(4)]
    ended = [site.checked(site.end(process)) for process in started]
    assert sorted({done.code for done in ended}) in ([0], [0, 4])
    assert len(service.calls) == 20
    site.judge(service, next(done.summary for done in ended if done.code == 0))


def test_a_run_shows_itself_while_it_is_live(site: Site, emulate: Emulators) -> None:
    """`status`, `report` and `runs` read beside a runner, and the classes sum at every moment."""
    service = emulate(3_000, latency_s=0.05)
    manifest = site.manifest(site.ids(3_000), limits={"rate_per_s": 20, "burst": 5})
    process = site.start_run(manifest, service)
    site.wait_until(lambda: len(service.calls) > 8)
    status = site.do("status", "fleet", "--json").summary
    assert status["state"] == "running"
    assert status["devices"] == 3_000
    assert sum(status[name] for name in ("accepted", "rejected", "in_doubt", "pending", "cancelled")) == 3_000
    assert 0 < status["accepted"] < 3_000
    assert 5 < status["rate_per_s"] < 45
    rows = site.receipts()
    assert len(rows) == 3_000
    assert status["accepted"] <= sum(row["state"] == "accepted" for row in rows)
    assert site.do("status", str(site.checkpoint)).code == 0
    assert "fleet" in site.do("runs").out
    process.send_signal(signal.SIGTERM)
    assert site.end(process).code == 143
    assert site.do("status", "fleet", "--json").summary["state"] == "resumable"
