"""What `status` says of a run from another process: live, killed, in doubt, finished."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

from dispatcher.emulator.faults import Fault, FaultPlan
from tests.e2e.conftest import CLASSES

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Site

KEYS = [
    "run",
    "state",
    "command",
    "checkpoint",
    "devices",
    "accepted",
    "rejected",
    "in_doubt",
    "pending",
    "cancelled",
    "batches",
    "split",
    "doubt",
    "rate_per_s",
    "learned_rate_per_s",
    "eta_s",
    "process",
    "heartbeat_at",
    "planned_at",
    "finished_at",
    "exit",
]
PROCESS_KEYS = [
    "began_at",
    "calls",
    "throttled",
    "retried",
    "faults",
    "in_flight",
    "rate_per_s",
    "rate_state",
    "rate_why",
    "service_per_s",
    "ceiling_per_s",
    "lane_state",
    "lane_reason",
    "forecast_s",
]
DOUBT_KEYS = ["unanswered", "resendable", "resend_until", "expired", "held"]


def status(site: Site, *arguments: object) -> dict[str, Any]:
    """`status --json`, its shape and sums checked."""
    done = site.do("status", "fleet", "--json", *arguments)
    assert done.code == 0, done.err
    found: dict[str, Any] = json.loads(done.out)
    assert list(found) == KEYS
    assert list(found["doubt"]) == DOUBT_KEYS
    assert found["process"] is None or list(found["process"]) == PROCESS_KEYS
    assert sum(found[name] for name in CLASSES) == found["devices"]
    doubt = found["doubt"]
    assert doubt["unanswered"] + doubt["resendable"] + doubt["expired"] + doubt["held"] == found["in_doubt"]
    return found


def test_a_live_run_tells_rate_throttles_and_time_left(site: Site, emulate: Emulators) -> None:
    """From another process, while it runs; after a kill, what it left; after the end, how it went."""
    service = emulate(3_000, rate_per_s=25, burst=5, latency_s=0.05)
    process = site.start_run(site.manifest(site.ids(3_000)), service)
    site.wait_until(lambda: service.throttled() > 3 and len(service.tasks()) > 60)
    site.wait_until(lambda: (status(site)["process"] or {"throttled": 0})["throttled"] > 3)
    live = status(site)
    assert (live["state"], live["devices"], live["exit"]) == ("running", 3_000, None)
    assert live["rate_per_s"] > 0
    assert live["eta_s"] > 0
    assert live["learned_rate_per_s"] < live["process"]["ceiling_per_s"] == 400
    assert live["process"]["rate_why"].startswith("service throttled at ")
    assert live["process"]["rate_why"].endswith("; ceiling 400/s")
    assert live["doubt"]["unanswered"] == live["in_doubt"]
    text = site.do("status", "fleet").out
    assert "throttled" in text
    assert "left" in text
    site.kill_after(process, service, 0)
    killed = status(site)
    assert (killed["state"], killed["rate_per_s"], killed["eta_s"]) == ("resumable", None, None)
    assert killed["learned_rate_per_s"] is not None
    assert "dispatcher resume fleet" in site.do("status", "fleet").out


def test_doubt_is_told_apart(site: Site, emulate: Emulators) -> None:
    """What will be asked again and until when, and what is past its window."""
    service = emulate(20, faults=FaultPlan(shares={Fault.LOST_THEN_404: 1.0}))
    done = site.run(site.manifest(site.ids(20), limits={"max_attempts": 2}), service)
    assert done.code == 1
    found = status(site)
    assert found["state"] == "in_doubt"
    assert (found["doubt"]["resendable"], found["exit"]) == (20, 1)
    assert found["doubt"]["resend_until"] > found["planned_at"]
    site.env["DISPATCHER_TOKEN_WINDOW_S"] = "0"
    assert status(site)["doubt"]["expired"] == 20
    assert "20 past the token window" in site.do("status", "fleet").out


def test_a_stopped_run_tells_how_it_went(site: Site, emulate: Emulators) -> None:
    """The last process's calls and lane stay readable."""
    service = emulate(500, latency_s=0.02)
    process = site.start_run(site.manifest(site.ids(500), limits={"rate_per_s": 60}), service)
    site.signal_after(process, service, 10, signal.SIGINT)
    assert site.end(process).code == 130
    found = status(site)
    assert found["state"] == "resumable"
    assert found["process"]["calls"] == len(service.calls)
    assert found["process"]["lane_state"] == "open"
