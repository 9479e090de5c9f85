"""Faults: decided by seed and client token alone, and what each does to the task."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.emulator.config import Config
from dispatcher.emulator.faults import BEFORE, Fault, FaultPlan, Outage, parse_fault, parse_outage
from dispatcher.emulator.service import Service
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from dispatcher.emulator.reply import Reply


def service_with(fault: Fault, share: float = 1.0, **other: Any) -> Service:
    return Service(Config(faults=FaultPlan(shares={fault: share}), **other))


def create(service: Service, token: str = "t", now_s: float = 0.0, target: str = "smd-a") -> Reply:
    sent = {"command": {"reboot": {}}, "targets": [target], "clientToken": token}
    return service.handle("CreateTask", sent, now_s)


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.OUTAGE])
def test_a_fault_makes_the_task_or_does_not(fault: Fault) -> None:
    """Faults before serving make nothing, faults after it make the task; the reply names the fault."""
    service = service_with(fault)
    reply = create(service)
    assert reply.fault is fault
    assert len(service.tasks) == (0 if fault in BEFORE else 1)
    assert reply.created == (fault not in BEFORE)


@pytest.mark.parametrize(
    ("fault", "status", "code"),
    [
        (Fault.RESET_BEFORE, 0, None),
        (Fault.BARE_429, 429, None),
        (Fault.BARE_503, 503, None),
        (Fault.REDIRECT, 307, None),
        (Fault.DENIED, 403, "AccessDeniedException"),
        (Fault.ERROR_500, 500, "InternalServerException"),
        (Fault.LOST_REPLY, 0, None),
        (Fault.ERROR_500_AFTER, 500, "InternalServerException"),
        (Fault.EMPTY_200, 200, None),
    ],
)
def test_a_fault_has_its_status_and_code(fault: Fault, status: int, code: str | None) -> None:
    """What the client can see of each fault."""
    reply = create(service_with(fault))
    assert (reply.status, reply.code) == (status, code)


@pytest.mark.parametrize("fault", [Fault.TRUNCATED, Fault.EMPTY_200, Fault.ENDLESS, Fault.ERROR_500_AFTER])
def test_only_a_200_can_be_spoilt(fault: Fault) -> None:
    """A refused call is answered truthfully."""
    reply = create(service_with(fault, bad_ids=frozenset({"smd-a"})))
    assert (reply.status, reply.fault) == (404, None)


def test_same_seed_same_decisions_in_any_order() -> None:
    """A call's fate depends on seed, token and its number among the token's calls, not on neighbours."""
    shares = {Fault.LOST_REPLY: 0.3, Fault.BARE_503: 0.3, Fault.LOST_THEN_404: 0.1}
    config = Config(seed=7, faults=FaultPlan(shares=shares))
    calls = [f"t{number % 50}" for number in range(200)]

    def fates(service: Service, order: list[str]) -> dict[str, list[Fault | None]]:
        found: dict[str, list[Fault | None]] = {}
        for token in order:
            found.setdefault(token, []).append(create(service, token).fault)
        return found

    forward = fates(Service(config), calls)
    assert forward == fates(Service(config), calls[::-1])
    other = Config(seed=8, faults=config.faults)
    assert forward != fates(Service(other), calls)


def test_shares_come_out() -> None:
    """Over many calls each fault strikes about its share."""
    plan = FaultPlan(shares={Fault.LOST_REPLY: 0.2, Fault.DRIP: 0.05, Fault.DENIED: 0.5})
    found = Counter(plan.decide(1, f"token{number}", 1) for number in range(20_000))
    assert found[Fault.LOST_REPLY] == pytest.approx(4000, rel=0.1)
    assert found[Fault.DRIP] == pytest.approx(1000, rel=0.2)
    assert found[Fault.DENIED] == pytest.approx(10_000, rel=0.05)
    assert found[None] == pytest.approx(5000, rel=0.1)


def test_lost_then_404_answers_every_later_call_with_404() -> None:
    """The task exists although the service denies its devices."""
    service = service_with(Fault.LOST_THEN_404)
    first, *later = [create(service) for _ in range(3)]
    assert (first.status, first.created) == (0, True)
    assert [(reply.status, reply.code) for reply in later] == [(404, "ResourceNotFoundException")] * 2
    assert len(service.tasks) == 1


def test_lost_then_404_waits_for_the_call_that_makes_the_task() -> None:
    """A throttled first call is answered truthfully; the curse falls on the one that is served."""
    service = service_with(Fault.LOST_THEN_404, rate_per_s=1, burst=1)
    create(service, "other")
    assert create(service, "t").status == 429
    assert create(service, "t", 1.0).status == 0
    assert create(service, "t", 2.0).status == 404


def test_faults_spare_reads_unless_told() -> None:
    """CreateTask alone is struck by default."""
    shares = {Fault.BARE_503: 1.0}
    assert Service(Config(faults=FaultPlan(shares=shares))).handle("ListTasks", {}, 0.0).status == 200
    struck = FaultPlan(shares=shares, operations=frozenset({"ListTasks"}))
    assert Service(Config(faults=struck)).handle("ListTasks", {}, 0.0).status == 503


@pytest.mark.parametrize(("mode", "status"), [("reset", 0), ("503", 503)])
def test_an_outage_covers_its_stretch_for_every_operation(mode: Any, status: int) -> None:
    """It is counted from the first call, and nothing is made in it."""
    service = Service(Config(faults=FaultPlan(outage=Outage(start_s=5, length_s=10, mode=mode))))
    assert create(service, "a", 1000.0).status == 200
    assert create(service, "b", 1004.9).status == 200
    assert create(service, "c", 1005.0).fault is Fault.OUTAGE
    assert service.handle("ListTasks", {}, 1014.9).status == status
    assert create(service, "d", 1015.0).status == 200
    assert len(service.tasks) == 3


def test_latency_lies_within_its_jitter() -> None:
    """Every reply waits about the mean, the same for the same seed."""
    config = Config(latency_s=0.1, latency_jitter=0.5)
    service = Service(config)
    delays = [create(service, f"t{number}").delay_s for number in range(200)]
    assert 0.05 <= min(delays) < 0.07
    assert 0.13 < max(delays) <= 0.15
    again = Service(config)
    assert delays == [create(again, f"t{number}").delay_s for number in range(200)]
    assert create(Service(Config())).delay_s == 0


@pytest.mark.parametrize(
    "text",
    ["nothing=1", "lost_reply", "lost_reply=", "lost_reply=-1", "lost_reply=2", "drip=nan", "outage=1"],
)
def test_a_fault_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    """Unknown names and shares outside 0 to 1 are refused."""
    with pytest.raises(UsageError):
        parse_fault(text)


def test_a_misspelt_fault_gets_a_suggestion() -> None:
    """The hint names the nearest fault."""
    with pytest.raises(UsageError) as caught:
        parse_fault("lost_repply=0.1")
    assert caught.value.hint == "did you mean lost_reply?"
    assert parse_fault("lost_reply=0.1") == (Fault.LOST_REPLY, 0.1)


def test_shares_may_not_sum_to_more_than_one() -> None:
    """At most one drawn fault strikes a call."""
    with pytest.raises(UsageError, match=r"sum to 1\.2"):
        FaultPlan(shares={Fault.DRIP: 0.6, Fault.DENIED: 0.6})


@pytest.mark.parametrize("text", ["", "1", "a:b", "-1:2", "1:0", "1:nan"])
def test_an_outage_that_cannot_be_read_is_a_usage_error(text: str) -> None:
    """START:LENGTH, both in seconds."""
    with pytest.raises(UsageError):
        parse_outage(text)
