"""Credentials that expire in mid-run, and patience: the real engine in virtual time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import pytest

from dispatcher.errors import PlanMismatch, RunInterrupted, RunStopped
from dispatcher.model import Answer, Kind
from dispatcher.observe import LaneChanged
from dispatcher.transport.credentials import CredentialKeeper, Found, NoCredentials
from dispatcher.transport.scripted import ScriptedTransport
from tests.engine.conftest import Bench, VirtualClock

if TYPE_CHECKING:
    from dispatcher.errors import DispatcherError
    from dispatcher.run import Run

EXPIRED = Answer(kind=Kind.EXPIRED, code="ExpiredTokenException", message="expired")
FAULT = Answer(kind=Kind.NO_REPLY, code="InternalServerException")
THROTTLED = Answer(kind=Kind.THROTTLED, code="ThrottlingException")
DENIED = Answer(kind=Kind.DENIED, code="AccessDeniedException")
Make = Callable[..., Bench]


class Login:
    """What an operator and an identity provider do, by virtual time."""

    def __init__(self, *, life_s: float | None = 10.0, out: tuple[float, float] = (0.0, 0.0)) -> None:
        """Credentials of `life_s`; none can be had from `out[0]` to `out[1]`."""
        self.life_s = life_s
        self.out = out
        self.asked: list[float] = []
        self.account: Callable[[float], str | None] = lambda _now: None
        self.key: Callable[[float], object] = lambda now: now
        self.takes_s = 0.05
        self.is_fixed = False

    def __call__(self, service: Any, **options: Any) -> ScriptedTransport:
        return Keyed(service, self, **options)

    async def fetch(self) -> Found:
        clock = VirtualClock()
        now = clock.monotonic()
        self.asked.append(now)
        await asyncio.sleep(self.takes_s)
        if self.out[0] <= now < self.out[1]:
            raise NoCredentials("the login is out")
        expires_at = None if self.life_s is None else clock.wall() + self.life_s
        return Found(self.key(now), "test", expires_at, self.account(now), is_fixed=self.is_fixed)


class Keyed(ScriptedTransport):
    """Signs with kept credentials, as the reference transport does."""

    def __init__(self, script: Any, login: Login, **options: Any) -> None:
        super().__init__(script, **options)
        self.keeper = CredentialKeeper(login.fetch, clock=VirtualClock())
        self.keys: list[tuple[float, object]] = []

    @property
    def refusal(self) -> DispatcherError | None:  # type: ignore[override]
        return self.keeper.refusal

    @refusal.setter
    def refusal(self, _none: None) -> None:
        """The base sets it."""

    async def create_task(self, targets: Sequence[str], client_token: str) -> Answer:
        if self.keeper.current is None:
            await self.keeper.renew()
        try:
            self.keeper.check()
        except NoCredentials as error:
            return Answer(kind=Kind.NO_CREDENTIALS, code="NoCredentials", message=str(error))
        used = self.keeper.use()
        self.keys.append((asyncio.get_running_loop().time(), used.frozen))
        answer = await super().create_task(targets, client_token)
        if answer.kind is Kind.EXPIRED:
            self.keeper.reject(used)
        return answer

    async def renew(self) -> Answer | None:
        await super().renew()
        try:
            await self.keeper.renew()
        except NoCredentials as error:
            kind = Kind.DENIED if error.is_final else Kind.NO_CREDENTIALS
            return Answer(kind=kind, code="NoCredentials", message=str(error))
        return None


def logged_in(bench: Make, login: Login, devices: int = 1_000, **service: Any) -> Bench:
    made = bench(devices, **service)
    made.transport_type = login
    return made


def reasons(made: Bench) -> list[tuple[str, str | None]]:
    return [(event.state, event.reason) for event in made.events if isinstance(event, LaneChanged)]


def attempts(made: Bench) -> set[int]:
    return {row.attempts for row in made.checkpoint.rows()}


def test_a_run_outlives_its_credentials(bench: Make) -> None:
    """Renewed ahead of every expiry: no pause, no attempt lost."""
    login = Login()
    made = logged_in(bench, login)
    summary, error = made.go(rate_per_s=1, burst=1)
    made.check(summary)
    assert (error, summary.counts.accepted, summary.calls) == (None, 1_000, 100)
    assert reasons(made) == []
    assert len(login.asked) <= 100 / 7.5 + 2


def test_a_lane_without_credentials_waits_and_burns_no_attempt(bench: Make) -> None:
    """Nothing is sent, nothing is in doubt, the reason says why; it goes on soon after they are back."""
    login = Login(out=(5.0, 120.0))
    made = logged_in(bench, login)
    seen: list[tuple[int, int, str | None]] = []

    async def look(run: Run) -> None:
        await asyncio.sleep(60)
        seen.append((made.checkpoint.counts().in_doubt, len(made.service.calls), run.progress.lane_reason))

    summary, error = made.go(during=look, rate_per_s=2, burst=1)
    made.check(summary)
    assert (error, summary.counts.accepted) == (None, 1_000)
    assert (summary.calls, summary.retried, summary.faults, len(made.service.calls)) == (100, 0, 0, 100)
    assert attempts(made) == {1}
    times = [at for at, _, _ in made.service.calls]
    assert not [at for at in times if 10.1 < at < 120]
    assert min(at for at in times if at > 100) < 120 + 31
    (in_doubt, calls, reason) = seen[0]
    assert (in_doubt, calls) == (0, len([at for at in times if at < 60]))
    assert reason is not None
    assert "ago and cannot be refreshed: the login is out" in reason
    assert [state for state, _ in reasons(made)] == ["paused", "open"]
    assert len(login.asked) < 20


def test_a_call_in_doubt_waits_for_credentials_too(bench: Make) -> None:
    """What was lost before the pause is asked again after it, under the same token."""
    lost = ("made", Answer(kind=Kind.NO_REPLY, code="Timeout"))
    login = Login(out=(5.0, 30.0))
    made = logged_in(bench, login, 300, fate=lambda _n, _t, _k, now: lost if 9 < now < 11 else None)
    summary, error = made.go(rate_per_s=2, burst=1)
    made.check(summary)
    assert (error, summary.counts.accepted, summary.counts.in_doubt) == (None, 300, 0)


def test_no_credentials_beyond_patience_ends_the_run(bench: Make) -> None:
    """Exit 3 on the second, everything unsent is pending, the reason is the credentials'."""
    made = logged_in(bench, Login(out=(5.0, 1e9)))
    summary, error = made.go(rate_per_s=2, burst=1, patience_s=60)
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert "the login is out" in str(error)
    last_s = max(at for at, _, _ in made.service.calls)
    assert made.clock.skew_s - last_s <= 60.1
    assert (summary.exit, summary.counts.in_doubt) == (3, 0)
    assert summary.counts.pending == 1_000 - 10 * len(made.service.calls)


def test_patience_does_not_wait_for_a_refresh_that_hangs(bench: Make) -> None:
    """Nor does an operator who stops the run."""
    login = Login()
    made = logged_in(bench, login)

    async def hang(run: Run) -> None:
        await asyncio.sleep(5)
        login.takes_s = 1e6
        await asyncio.sleep(15)
        run.drain()
        began.append(asyncio.get_running_loop().time())

    began: list[float] = []
    summary, error = made.go(during=hang, rate_per_s=2, burst=1)
    made.check(summary)
    assert isinstance(error, RunInterrupted)
    assert made.clock.skew_s - began[0] < 0.1
    login.takes_s = 0.05
    summary, error = made.go(during=hang, rate_per_s=2, burst=1, patience_s=6)
    assert isinstance(error, RunStopped)
    assert "are being refreshed" in str(error)


def test_an_expired_token_of_the_service_forces_one_refresh(bench: Make) -> None:
    """Whatever our clock says: renewed once for a whole window of refused calls, then all goes on."""
    login = Login(life_s=None)
    made = logged_in(bench, login)
    made.service.fate = lambda _n, _t, _k, now: EXPIRED if now >= 2 and login.asked[-1] < 2 else None
    made.service.latency_s = 0.5
    summary, error = made.go(rate_per_s=50)
    made.check(summary)
    assert (error, summary.counts.accepted, summary.counts.in_doubt) == (None, 1_000, 0)
    assert len(login.asked) == 2
    assert [state for state, _ in reasons(made)] == ["paused", "open"]


def test_expired_credentials_that_stay_the_same_are_not_sent_again(bench: Make) -> None:
    """A file that nobody has renewed yet: the lane waits for it without a call."""
    login = Login(life_s=None)
    login.key = lambda now: "old" if now < 50 else "new"
    made = logged_in(bench, login)
    made.service.fate = lambda _n, _t, _k, now: EXPIRED if 2 <= now < 50 else None
    summary, error = made.go(rate_per_s=20)
    made.check(summary)
    assert (error, summary.counts.accepted) == (None, 1_000)
    assert not [at for at, _, _ in made.service.calls if 2.2 < at < 50]


def test_an_environment_that_expired_ends_the_run(bench: Make) -> None:
    """No waiting is of use there: exit 3 at once, with what to do."""
    login = Login(life_s=None)
    login.key, login.is_fixed = (lambda _now: "same"), True
    made = logged_in(bench, login)
    made.service.fate = lambda _n, _t, _k, now: EXPIRED if now >= 2 else None
    summary, error = made.go(rate_per_s=20)
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert "environment variables" in str(error)
    assert made.clock.skew_s < 3
    assert summary.counts.in_doubt == 0


def test_a_refusal_of_permissions_still_stops_the_lane(bench: Make) -> None:
    """AccessDenied is no expiry: renewed once, then exit 3 within a handful of calls."""
    made = logged_in(bench, Login(), fate=lambda *_: DENIED)
    summary, error = made.go()
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert len(made.service.calls) <= 12
    (state, reason), *_ = reasons(made)
    assert (state, reason) == ("denied", "refused, so credentials are renewed (AccessDeniedException)")


def test_another_account_stops_the_run(bench: Make) -> None:
    """Exit 4, and not one call carries the other account's key."""
    login = Login()
    login.account = lambda now: "111122223333" if now < 7 else "444455556666"
    made = logged_in(bench, login)
    summary, error = made.go(rate_per_s=2, burst=1)
    made.check(summary)
    assert isinstance(error, PlanMismatch)
    assert "444455556666" in str(error)
    assert (summary.exit, summary.counts.in_doubt) == (4, 0)
    assert isinstance(made.transport, Keyed)
    assert made.transport.keys
    assert all(key < 7 for _, key in made.transport.keys)  # type: ignore[operator]


def test_credentials_that_go_while_the_request_is_on_trial(bench: Make) -> None:
    """The trial waits for them, and concludes afterwards."""
    poison = Answer(kind=Kind.POISON, code="ValidationException", message="no")
    login = Login(life_s=2.0, out=(1.0, 40.0))
    made = logged_in(bench, login, 200, fate=lambda *_: poison)
    summary, error = made.go(rate_per_s=2, burst=1)
    made.check(summary)
    assert isinstance(error, RunStopped)
    assert "no device was accepted" in str(error)
    assert summary.counts.pending == 200


@pytest.mark.parametrize("answer", [FAULT, THROTTLED, Answer(kind=Kind.UNREACHABLE)], ids=str)
def test_patience_is_kept_to_the_second(bench: Make, answer: Answer) -> None:
    """A backoff of up to ten seconds does not outlast a patience of four."""
    for seed in range(10):
        made = bench(10, fate=lambda *_: answer)
        summary, error = made.go(patience_s=4, rate_per_s=100 + seed)
        made.check(summary)
        assert isinstance(error, RunStopped)
        assert made.clock.skew_s <= 4.1


def test_a_pause_an_outage_and_a_quota_say_why(bench: Make) -> None:
    """Whatever keeps a lane from flowing has a reason, in the events and in the progress."""
    quota = Answer(kind=Kind.QUOTA, code="ServiceQuotaExceededException")
    fates = {5: FAULT, 60: quota}

    def fate(_n: int, _t: object, _k: object, now: float) -> Answer | None:
        return next((fates[at] for at in (60, 5) if at <= now < at + 40), None)

    made = bench(3_000, fate=fate)
    summary, error = made.go(rate_per_s=3)
    made.check(summary)
    assert error is None
    said = dict(reasons(made))
    assert said["probing"] == "20 faults in a row (InternalServerException)"
    assert said["paused"] == "the service's quota is used up (ServiceQuotaExceededException)"
    assert said["open"] is None
