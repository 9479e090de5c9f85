"""What the service may do to a run: poison, lost replies, throttles, denials, outages, quotas."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.faults import Fault, FaultPlan, Outage

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Site

soak = pytest.mark.skipif("SOAK" not in os.environ, reason="the full figures: set SOAK=1")


def check_poison(site: Site, emulate: Emulators, good: list[str], bad: list[str]) -> None:
    service = emulate(len(good))
    done = site.run(site.manifest(good + bad), service)
    assert done.code == 1, done.err
    summary = done.summary
    assert (summary["accepted"], summary["rejected"]) == (len(good), len(bad))
    rows = site.judge(service, summary)
    rejected = {row["device_id"]: row for row in rows if row["state"] == "rejected"}
    assert sorted(rejected) == sorted(bad)
    assert all(row["error_code"] and row["error_message"] for row in rejected.values())
    fewest = -(-(len(good) + len(bad)) // 10)
    assert len(service.calls) <= fewest + 9 * len(bad)


def test_bad_ids_cost_their_neighbours_nothing(site: Site, emulate: Emulators) -> None:
    """17 bad ids in 1,000: 983 accepted, 17 rejected with a reason, at most 9 extra calls for each."""
    good = site.ids(983)
    check_poison(site, emulate, good, [good[50 * number] + "x" for number in range(17)])


def test_bad_ids_in_all_the_first_batches(site: Site, emulate: Emulators) -> None:
    """That nothing was accepted yet does not condemn the request: one batch is tried, and it goes on."""
    good = site.ids(300)
    check_poison(site, emulate, good, [good[10 * number] + "x" for number in range(14)])


def test_bad_ids_all_together(site: Site, emulate: Emulators) -> None:
    """Whole batches of bad ids among good ones are rejected id by id."""
    good = site.ids(200)
    check_poison(site, emulate, good, [f"smd-zzz{number:013d}" for number in range(25)])


def test_a_404_after_a_lost_reply_never_splits(site: Site, emulate: Emulators) -> None:
    """The task may exist, so its batch stays in doubt: exit 1, no device twice."""
    service = emulate(1_000, faults=FaultPlan(shares={Fault.LOST_THEN_404: 0.1}), seed=4)
    manifest = site.manifest(site.ids(1_000))
    done = site.run(manifest, service)
    assert (done.code, done.summary["split"], done.summary["rejected"]) == (1, 0, 0)
    assert done.summary["in_doubt"] > 0
    cursed = {call.client_token for call in service.calls if call.fault == Fault.LOST_THEN_404}
    assert done.summary["in_doubt"] == 10 * len(cursed)
    assert {len(devices) for devices in service.tasks().values()} == {10}
    site.judge(service, done.summary)
    again = site.run(manifest, service)
    assert (again.code, again.summary["in_doubt"]) == (1, done.summary["in_doubt"])
    site.judge(service, again.summary)


def test_a_throttling_service_is_met_at_its_rate(site: Site, emulate: Emulators) -> None:
    """A ceiling ten times the service's rate: it is learnt, without a storm of throttles.

    The figures are `python -m bench rate`'s; backoff alone would have half of the calls throttled here.
    """
    service = emulate(3_000, rate_per_s=40.0, burst=40, latency_s=0.02)
    done = site.run(site.manifest(site.ids(3_000)), service)
    assert (done.code, done.summary["accepted"]) == (0, 3_000)
    arrivals = [call.at for call in service.calls]
    assert arrivals[-1] - arrivals[0] <= 1.5 * (300 - 40) / 40
    assert service.throttled() == done.summary["throttled"] <= 0.2 * len(service.calls)
    site.judge(service, done.summary)


def test_a_denied_run_stops_within_a_handful_of_calls(site: Site, emulate: Emulators) -> None:
    """AccessDenied on 20,000 devices: exit 3, all pending, a few calls; then it runs with permission."""
    denied, allowed = emulate(20_000, deny=frozenset({"CreateTask"})), emulate(20_000)
    limits = {"rate_per_s": 2_000, "burst": 50, "max_in_flight": 64}
    manifest = site.manifest(site.ids(20_000), limits=limits)
    done = site.run(manifest, denied)
    assert (done.code, done.summary["pending"]) == (3, 20_000)
    assert "AccessDenied" in done.errors[0]
    assert "dispatcher resume fleet" in done.errors[0]
    assert len(denied.calls) <= 64
    done = site.run(manifest, allowed, "--limit", 500)
    assert (done.code, done.summary["accepted"]) == (0, 500)


def test_a_wrong_region_rejects_nobody(site: Site, emulate: Emulators) -> None:
    """404 for 20,000 devices is the request's fault: exit 3, all pending; the right region finishes it."""
    service = emulate(20_000, region="eu-west-1")
    limits = {"rate_per_s": 2_000, "burst": 50, "max_in_flight": 64}
    manifest = site.manifest(site.ids(20_000), limits=limits)
    done = site.run(manifest, service)
    assert (done.code, done.summary["pending"], done.summary["rejected"]) == (3, 20_000, 0)
    assert len(service.calls) <= 64
    assert site.do("resume", "fleet", "--json").code == 3
    assert len(service.calls) <= 128
    done = site.run(manifest, service, "--region", "eu-west-1")
    assert (done.code, done.summary["accepted"]) == (0, 20_000)
    site.judge(service, done.summary)


@pytest.mark.parametrize(
    "mode",
    ["reset", pytest.param("503", marks=[soak, pytest.mark.soak])],
)
def test_an_outage_is_waited_out(site: Site, emulate: Emulators, mode: Any) -> None:
    """Three seconds without a service: few calls during them, exit 0, every device once."""
    outage = Outage(start_s=0.5, length_s=3.0, mode=mode)
    service = emulate(1_200, faults=FaultPlan(outage=outage), latency_s=0.01)
    done = site.run(site.manifest(site.ids(1_200), limits={"rate_per_s": 100, "burst": 10}), service)
    assert (done.code, done.summary["accepted"]) == (0, 1_200), done.err
    lost = [call for call in service.calls if call.fault == Fault.OUTAGE]
    assert 0 < len(lost) <= 45
    site.judge(service, done.summary)


def test_a_quota_is_waited_for(site: Site, emulate: Emulators) -> None:
    """402 pauses the run; it goes on as tasks stop counting."""
    service = emulate(150, quota=8, quota_frees_s=2.0)
    done = site.run(site.manifest(site.ids(150)), service)
    assert (done.code, done.summary["accepted"]) == (0, 150)
    refused = [call for call in service.calls if call.status == 402]
    assert 0 < len(refused) <= 60
    site.judge(service, done.summary)


def test_a_quota_that_never_frees_ends_by_patience(site: Site, emulate: Emulators) -> None:
    """Exit 3 after `patience_s`, with the rest pending and nothing in doubt; then it is resumed."""
    service = emulate(200, quota=5)
    manifest = site.manifest(site.ids(200), limits={"patience_s": 2})
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], done.summary["pending"]) == (3, 50, 150)
    assert "402" in done.errors[0] or "Quota" in done.errors[0]
    assert "dispatcher resume fleet" in done.errors[0]
    site.judge(service, done.summary)


def test_a_spoilt_answer_is_asked_again(site: Site, emulate: Emulators) -> None:
    """One call in six goes wrong in one of five ways; every device has its one task in the end."""
    spoilt = (Fault.TRUNCATED, Fault.EMPTY_200, Fault.BARE_429, Fault.REDIRECT, Fault.RESET_BEFORE)
    service = emulate(600, faults=FaultPlan(shares=dict.fromkeys(spoilt, 0.035)), seed=7)
    done = site.run(site.manifest(site.ids(600)), service)
    assert (done.code, done.summary["accepted"]) == (0, 600), done.err
    assert {call.fault for call in service.calls} == {None, *spoilt}
    site.judge(service, done.summary)


@soak
@pytest.mark.soak
@pytest.mark.timeout(900)
def test_soak_every_fault_at_once(site: Site, emulate: Emulators) -> None:
    """30,000 devices among all faults: every device once, whatever is in doubt is listed."""
    names = ("lost_reply", "error_500", "error_500_after", "bare_429", "bare_503", "truncated", "empty_200")
    faults = FaultPlan(shares={Fault(name): 0.03 for name in names}, outage=Outage(start_s=2, length_s=10))
    service = emulate(30_000, faults=faults, latency_s=0.01, rate_per_s=200.0)
    done = site.run(site.manifest(site.ids(30_000)), service, timeout=600)
    assert (done.code, done.summary["accepted"]) == (0, 30_000), done.err
    site.judge(service, done.summary)
