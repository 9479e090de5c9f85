"""The walk under every kind of answer, in virtual time."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from dispatcher.errors import CheckpointIo, CheckpointLeased, RunInterrupted, RunStopped
from dispatcher.model import Answer, Kind
from dispatcher.run import Run
from dispatcher.transport.base import TaskView

LOST = ("made", Answer(kind=Kind.NO_REPLY, code="Timeout"))
FAULT = Answer(kind=Kind.NO_REPLY, code="InternalServerException")
POISON = Answer(kind=Kind.POISON, code="ResourceNotFoundException", message="not found")
DENIED = Answer(kind=Kind.DENIED, code="AccessDeniedException")
QUOTA = Answer(kind=Kind.QUOTA, code="ServiceQuotaExceededException")
THROTTLED = Answer(kind=Kind.THROTTLED, code="ThrottlingException")

Make = Callable[..., Any]


def first_call_of_each(answer: object) -> Callable[..., object]:
    """A fate that befalls the first call with every token."""
    seen: set[str] = set()

    def fate(_number: int, _targets: Sequence[str], token: str, _now: float) -> object:
        if token in seen:
            return None
        seen.add(token)
        return answer

    return fate


def test_a_quiet_run_sends_every_batch_once(bench: Make) -> None:
    """Without faults there is one call a batch, and everything is accepted."""
    made = bench(1_003)
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.calls, summary.exit) == (1_003, 101, 0)


@pytest.mark.parametrize("answer", [LOST, FAULT, THROTTLED, Answer(kind=Kind.UNREADABLE)], ids=str)
def test_a_batch_that_failed_once_goes_again_under_its_token(bench: Make, answer: object) -> None:
    """Lost replies, 500s, throttles and empty answers cost one more call each, with the same token."""
    made = bench(200, fate=first_call_of_each(answer))
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 200
    assert len({token for _, _, token in made.service.calls}) == 20


def test_poison_costs_only_the_bad_device(bench: Make) -> None:
    """One bad id in ten is found in at most eight further calls; its nine neighbours get their task."""
    made = bench(100, bad=frozenset({"smd-00042"}))
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.counts.rejected, summary.exit) == (99, 1, 1)
    assert summary.calls <= 10 + 8


def test_doubt_then_not_found_never_splits(bench: Make) -> None:
    """A lost reply followed by a 404 leaves the batch in doubt: its task may exist."""
    lost: set[str] = set()

    def fate(number: int, targets: Sequence[str], token: str, now: float) -> object:
        if token in lost:
            return POISON
        if number % 5 == 0:
            lost.add(token)
            return LOST
        return None

    made = bench(100, fate=fate)
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert summary.counts.split == 0
    assert summary.counts.in_doubt == 10 * len(lost)
    assert summary.exit == 1
    assert all(len(targets) == 10 for _, targets, _ in made.service.calls)


def test_a_token_used_with_other_parameters_is_never_sent_again(bench: Make) -> None:
    """A mismatch leaves the batch in doubt for good: not in this process, not on resume."""
    mismatch = Answer(kind=Kind.MISMATCH, code="ValidationException", message="token reused")
    made = bench(30, fate=lambda number, *_: mismatch if number == 2 else None)
    summary, _ = made.go()
    assert summary.counts.in_doubt == 10
    calls = len(made.service.calls)
    summary, _ = made.go()
    made.check(summary)
    assert (summary.counts.in_doubt, len(made.service.calls)) == (10, calls)


def test_max_attempts_counts_answers_that_leave_doubt(bench: Make) -> None:
    """A sticky 500 rests in doubt after max_attempts calls and one more pass; the others go on."""
    made = bench(500, fate=lambda _n, targets, *_: FAULT if "smd-00010" in targets else None)
    summary, error = made.go(max_attempts=3)
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.counts.in_doubt, summary.exit) == (490, 10, 1)
    assert sum("smd-00010" in targets for _, targets, _ in made.service.calls) == 4


def test_throttles_burn_no_attempt(bench: Make) -> None:
    """A modelled throttle is no doubt and never exhausts a batch."""
    made = bench(50, fate=lambda number, *_: THROTTLED if number <= 60 else None)
    summary, error = made.go(max_attempts=2)
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.throttled) == (50, 60)


def test_access_denied_stops_within_a_handful_of_calls(bench: Make) -> None:
    """Credentials are renewed once; a second refusal stops the lane with every batch still planned."""
    made = bench(20_000, fate=lambda *_: DENIED)
    summary, error = made.go(max_in_flight=64)
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert summary.exit == 3
    assert (summary.counts.pending, summary.counts.in_doubt) == (20_000, 0)
    assert len(made.service.calls) <= 16
    assert made.transport.renewals == 1


def test_expired_credentials_are_renewed_and_the_run_goes_on(bench: Make) -> None:
    """A refusal in mid-run costs a renewal, and nothing else."""
    made = bench(500, fate=lambda number, *_: DENIED if 20 <= number < 36 else None)
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 500
    assert made.transport.renewals >= 1


def test_a_wrong_region_is_not_twenty_thousand_bad_devices(bench: Make) -> None:
    """When nothing is ever accepted, one batch is tried alone, put back, and the lane stops."""
    made = bench(20_000, fate=lambda *_: POISON)
    summary, error = made.go(max_in_flight=64)
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert summary.counts.pending == 20_000
    assert (summary.counts.rejected, summary.counts.split, summary.counts.in_doubt) == (0, 0, 0)
    assert len(made.service.calls) <= 64


def test_first_batches_that_all_hold_a_bad_id_do_not_stop_the_run(bench: Make) -> None:
    """Held-back rejections are released by the first device that is accepted."""
    bad = frozenset(f"smd-{10 * i + 3:05d}" for i in range(12))
    made = bench(1_000, bad=bad)
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.counts.rejected) == (988, 12)


def test_a_run_of_one_bad_device_stops_and_stays_planned(bench: Make) -> None:
    """With all there is refused there is no telling the device from the request."""
    made = bench(["smd-bad"], bad=frozenset({"smd-bad"}))
    summary, error = made.go()
    assert isinstance(error, RunStopped)
    assert (summary.counts.pending, summary.exit) == (1, 3)


def test_an_outage_is_probed_singly_and_taints_few_batches(bench: Make) -> None:
    """Five minutes of resets: a bounded number of calls, and the run ends as if nothing had been."""
    made = bench(5_000, fate=lambda _n, _t, _k, now: FAULT if 0.1 <= now < 300 else None)
    summary, error = made.go(rate_per_s=400)
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 5_000
    during = [targets for at, targets, _ in made.service.calls if 0.1 <= at < 300]
    assert len(during) <= 100
    assert len(set(during)) <= 36, "each batch that was tried may be in doubt"


def test_an_outage_leaves_claims_given_back(bench: Make) -> None:
    """In an outage only what was really sent is in doubt: the rest is planned again, durably."""
    made = bench(5_000, fate=lambda _n, _t, _k, now: FAULT if now >= 0.1 else None)
    summary, error = made.go(rate_per_s=400, patience_s=60)
    made.check(summary)
    assert isinstance(error, RunStopped)
    sent = {targets for at, targets, _ in made.service.calls if at >= 0.1}
    assert summary.counts.in_doubt <= 10 * len(sent)


def test_a_refused_connection_burns_no_attempt(bench: Make) -> None:
    """Nothing was sent, so nothing is in doubt, however long it lasts."""
    refused = Answer(kind=Kind.UNREACHABLE, code="EndpointConnectionError")
    made = bench(100, fate=lambda _n, _t, _k, now: refused if now < 120 else None)
    summary, error = made.go()
    made.check(summary)
    assert error is None
    assert (summary.counts.accepted, summary.counts.in_doubt) == (100, 0)


def test_quota_pauses_and_goes_on(bench: Make) -> None:
    """A used-up quota is probed singly until it frees."""
    made = bench(1_000, fate=lambda _n, _t, _k, now: QUOTA if 0.05 <= now < 90 else None)
    summary, error = made.go(rate_per_s=400)
    made.check(summary)
    assert error is None
    assert summary.counts.accepted == 1_000
    assert sum(0.2 <= at < 90 for at, _, _ in made.service.calls) <= 20


def test_quota_beyond_patience_stops_with_all_planned(bench: Make) -> None:
    """Patience counts from the last good answer; then exit 3, and nothing is in doubt."""
    made = bench(1_000, fate=lambda *_: QUOTA)
    summary, error = made.go(patience_s=30)
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert (summary.counts.pending, summary.exit) == (1_000, 3)


def test_odd_answers_stop_the_lane_after_five_in_a_row(bench: Make) -> None:
    """Redirects and a proxy's own refusals are not this service's: stop before they taint the fleet."""
    made = bench(1_000, fate=lambda *_: Answer(kind=Kind.ODD, code="HTTP 307"))
    summary, error = made.go()
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert len(made.service.calls) <= 12
    assert summary.counts.in_doubt <= 10 * len(made.service.calls)


def test_the_rate_bound_holds_over_every_window(bench: Make) -> None:
    """At most rate · T + burst calls leave in any window, retries and a restart included."""
    made = bench(3_000, fate=lambda number, *_: THROTTLED if number % 7 == 0 else None)

    async def stop(run: Run) -> None:
        await asyncio.sleep(1.0)
        run.drain()

    made.go(during=stop, rate_per_s=50, burst=5)
    first = [at for at, _, _ in made.service.calls]
    made.service.calls.clear()
    summary, _ = made.go(rate_per_s=50, burst=5)
    made.check(summary)
    ended = max(first)
    both = first + [ended + at for at, _, _ in made.service.calls]
    for i, start in enumerate(both):
        for n, at in enumerate(both[i:], 1):
            assert n <= 50 * (at - start) + 5 + 1e-6


def test_the_window_is_never_exceeded(bench: Make) -> None:
    """No more calls fly than max_in_flight, and at most 8 before the first acceptance."""
    made = bench(2_000, latency_s=1.0)
    summary, _ = made.go(max_in_flight=12, burst=64)
    made.check(summary)
    assert made.transport.max_in_flight == 12
    assert sum(at < 1.0 for at, _, _ in made.service.calls) == 8


def test_drain_brings_calls_home_and_gives_the_rest_back(bench: Make) -> None:
    """The first signal: in-flight calls are settled, claimed batches are planned again, exit 130."""
    made = bench(2_000, latency_s=0.5)

    async def stop(run: Run) -> None:
        await asyncio.sleep(1.2)
        run.drain(130)

    summary, error = made.go(during=stop)
    made.check(summary)
    assert isinstance(error, RunInterrupted)
    assert summary.counts.in_doubt == 0
    assert summary.counts.accepted == 10 * len(made.service.calls)
    summary, error = made.go()
    made.check(summary)
    assert (error, summary.counts.accepted) == (None, 2_000)


def test_drain_while_waiting_for_a_slow_bucket_is_prompt(bench: Make) -> None:
    """A run at one call in ten seconds stops at once all the same, and sends nothing more."""
    made = bench(100)

    async def stop(run: Run) -> None:
        await asyncio.sleep(13)
        run.drain()

    summary, error = made.go(during=stop, rate_per_s=0.1, burst=1)
    made.check(summary)
    assert isinstance(error, RunInterrupted)
    assert len(made.service.calls) == 1


def test_an_expired_token_is_never_sent_again(bench: Make) -> None:
    """Past the token window a batch rests in doubt; neither this process nor the next resends it."""
    made = bench(100, fate=lambda _n, targets, *_: LOST if "smd-00000" in targets else None)
    summary, _ = made.go(token_window_s=4.0, attempt_timeout_s=1.0)
    made.check(summary)
    sent = [at for at, targets, _ in made.service.calls if "smd-00000" in targets]
    assert summary.counts.in_doubt == 10
    assert max(sent) - min(sent) < 4.0
    made.clock.skew_s += 100.0
    calls = len(made.service.calls)
    summary, _ = made.go(token_window_s=4.0)
    made.check(summary)
    assert (len(made.service.calls), summary.counts.in_doubt) == (calls, 10)


def test_a_clock_that_steps_back_counts_as_expired(bench: Make) -> None:
    """A negative age proves that a clock moved: nothing in doubt is resent."""
    made = bench(10, fate=lambda *_: LOST)
    made.go(max_attempts=1)
    calls = len(made.service.calls)
    made.clock.skew_s -= 50.0
    summary, _ = made.go()
    made.check(summary)
    assert (len(made.service.calls), summary.counts.in_doubt) == (calls, 10)


def test_a_crash_leaves_claims_in_doubt_and_resume_settles_them(bench: Make) -> None:
    """Whatever was claimed without an outcome is resent under the same token, inside the window."""
    made = bench(1_000, latency_s=0.3)

    async def killed(run: Run) -> None:
        await asyncio.sleep(0.75)
        for task in asyncio.all_tasks():
            if task is not asyncio.current_task():
                task.cancel()

    with pytest.raises(asyncio.CancelledError):
        made.go(during=killed)
    in_doubt = made.checkpoint.counts().in_doubt
    assert in_doubt > 0
    summary, error = made.go()
    made.check(summary)
    assert (error, summary.counts.accepted) == (None, 1_000)


def test_limit_sends_exactly_that_many_new_devices(bench: Make) -> None:
    """--limit 25 sends 25 devices, cutting one batch; the rest stays planned and goes next time."""
    made = bench(100)
    summary, error = made.go(limit=25)
    made.check(summary)
    assert (error, summary.counts.accepted, summary.counts.pending, summary.exit) == (None, 25, 75, 0)
    summary, error = made.go()
    made.check(summary)
    assert (summary.counts.accepted, summary.exit) == (100, 0)


def test_a_first_task_older_than_the_plan_is_told(bench: Make) -> None:
    """Last night's task is not tonight's: the first task's age is looked at once."""
    made = bench(50)
    summary, _ = made.go(describe=lambda _id: TaskView(1_600_000_000.0, None, ()))
    assert summary.replayed == 10
    made = bench(50)
    summary, _ = made.go(describe=lambda _id: TaskView(made.clock.wall(), None, ()))
    assert summary.replayed == 0


def test_a_task_of_another_account_stops_the_run(bench: Make) -> None:
    """The account of the first task is the run's; a task of another one ends it with exit 4."""
    other = Answer(
        kind=Kind.ACCEPTED,
        task_id="st-x",
        task_arn="arn:aws:snow-device-management:us-west-2:999999999999:task/st-x",
    )
    made = bench(1_000, fate=lambda number, *_: ("made", other) if number == 30 else None)
    summary, error = made.go()
    assert error is not None
    assert error.exit_code == 4
    assert summary.counts.pending > 0


def test_a_full_disk_stops_sending_and_loses_nothing(bench: Make) -> None:
    """When a commit fails no more is sent, the error is exit 4, and a resume ends the run."""
    made = bench(1_000)
    record, left = made.checkpoint.record, [3]

    def failing(outcomes: Any, *, now: float) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise CheckpointIo("no space left")
        if left[0] < 0:
            raise AssertionError("a failed commit was tried again")
        record(outcomes, now=now)

    made.checkpoint.record = failing
    _, error = made.go(rate_per_s=200)
    assert isinstance(error, CheckpointIo)
    assert len(made.service.calls) < 60
    made.checkpoint.record = record
    summary, error = made.go()
    made.check(summary)
    assert (error, summary.counts.accepted) == (None, 1_000)


def test_a_hook_that_raises_harms_nothing(bench: Make) -> None:
    """Observers are guests."""
    made = bench(50)

    class Angry(list[object]):
        def append(self, _event: object) -> None:
            raise ValueError("no")

    made.events = Angry()
    summary, error = made.go()
    assert (error, summary.counts.accepted) == (None, 50)


def test_events_follow_durability(bench: Make) -> None:
    """Every batch is told once, after its commit, between a start and an end."""
    made = bench(200, bad=frozenset({"smd-00007"}))
    made.go()
    names = Counter(type(event).__name__ for event in made.events)
    assert (names["RunStarted"], names["RunEnded"]) == (1, 1)
    settled = [event for event in made.events if type(event).__name__ == "BatchSettled"]
    assert sum(event.devices for event in settled if event.state == "accepted") == 199
    assert all(event.json() and event.text() for event in made.events)


def test_a_lease_lost_during_retries_ends_the_run(bench: Make) -> None:
    """A retry whose lease check fails stops the run; nobody waits for an attempt that never comes."""
    made = bench(40, fate=lambda *_: FAULT)
    made.checkpoint.check_lease = _taken_over
    _, error = made.go(max_attempts=50)
    assert error is not None
    assert error.exit_code == 4


def _taken_over(*, now: float) -> None:
    raise CheckpointLeased("another runner took the run over")


def test_a_trial_that_ends_in_doubt_undoes_nothing(bench: Make) -> None:
    """A lost reply inside a trial stays in doubt when the lane stops: its task may exist."""
    seen = [0]

    def fate(_number: int, targets: Sequence[str], *_: Any) -> object:
        if len(targets) == 10:
            return None
        seen[0] += 1
        return LOST if seen[0] == 1 else DENIED

    made = bench(50, bad=frozenset(f"smd-{i:05d}" for i in range(9, 50, 10)), fate=fate)
    summary, error = made.go()
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert summary.counts.in_doubt == 5
    made.service.fate = None
    summary, _ = made.go()
    made.check(summary)
    assert (summary.counts.accepted, summary.counts.rejected) == (45, 5)


def test_a_machine_that_slept_checks_its_lease_before_a_first_send(bench: Make) -> None:
    """The monotonic clock stands still in a sleep; the wall clock tells, and the lease is looked at."""
    made = bench(400)
    checks: list[float] = []
    look = made.checkpoint.check_lease

    def check_lease(*, now: float) -> None:
        checks.append(now)
        look(now=now)

    made.checkpoint.check_lease = check_lease

    def fate(number: int, *_: Any) -> object:
        made.clock.skew_s += 3600 if number == 15 else 0
        return None

    made.service.fate = fate
    summary, _ = made.go(max_in_flight=1, rate_per_s=100, burst=1)
    made.check(summary)
    assert checks


def test_a_window_that_closed_while_the_lease_was_looked_at_sends_nothing(bench: Make) -> None:
    """The look waits for the disk: a retry whose permit is there at once is judged by the time after it."""
    made = bench(10, fate=lambda *_: LOST)
    look = made.checkpoint.check_lease
    sent: list[int] = []

    def check_lease(*, now: float) -> None:
        look(now=now)
        sent.append(len(made.service.calls))
        made.clock.skew_s += 3600  # the disk stalled, or the machine slept, in here

    made.checkpoint.check_lease = check_lease
    summary, _ = made.go(max_attempts=50)
    made.check(summary)
    assert summary.counts.in_doubt == 10
    assert sent
    assert set(sent) == {len(made.service.calls)}


def test_limit_is_judged_by_how_it_ends(bench: Make) -> None:
    """A doubt that the final pass settles is no reason for exit 1."""
    made = bench(100, fate=lambda number, *_: FAULT if number == 1 else None)
    summary, error = made.go(limit=10, max_attempts=1)
    made.check(summary)
    assert (error, summary.counts.accepted, summary.exit) == (None, 10, 0)


def test_limit_keeps_to_the_devices_it_began_with(bench: Make) -> None:
    """A pause in mid-limit gives the device back and takes the same one again."""
    made = bench(30, fate=lambda number, *_: QUOTA if number <= 3 else None)
    summary, error = made.go(limit=1)
    made.check(summary)
    assert (error, summary.counts.accepted, summary.counts.split) == (None, 1, 1)
    assert {targets for _, targets, _ in made.service.calls} == {("smd-00000",)}


def test_the_look_at_the_first_task_keeps_to_the_window(bench: Make) -> None:
    """DescribeTask takes a slot like any other call."""
    made = bench(100)
    most: list[int] = []

    def describe(_task_id: str) -> None:
        most.append(made.transport.in_flight)

    summary, _ = made.go(max_in_flight=1, describe=describe)
    made.check(summary)
    assert most == [0]
