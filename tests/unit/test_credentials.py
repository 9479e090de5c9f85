"""The keeper of credentials in virtual time: when it refreshes, who waits, and what it says."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

import pytest

from dispatcher.errors import PlanMismatch
from dispatcher.transport.credentials import REFRESH_S, CredentialKeeper, Found, NoCredentials, span
from tests.engine.conftest import VirtualClock, VirtualTimeLoop

SECRET = "wJalrCANARYsecretKEY0123456789"


@dataclass
class Source:
    """A chain that gives credentials of `life_s`, or what it is told to."""

    clock: VirtualClock
    life_s: float | None = 3_600.0
    takes_s: float = 0.1
    account: str | None = None
    is_fixed: bool = False
    is_estimate: bool = False
    gives: str | None = None
    """The same key each time; else another one."""
    broken: bool = False
    asked: list[float] = field(default_factory=list)
    in_flight: int = 0
    most: int = 0

    async def __call__(self) -> Found:
        self.asked.append(self.clock.monotonic())
        self.in_flight += 1
        self.most = max(self.most, self.in_flight)
        try:
            await asyncio.sleep(self.takes_s)
        finally:
            self.in_flight -= 1
        if self.broken:
            raise NoCredentials("the cable is out", hint="plug it in")
        expires_at = None if self.life_s is None else self.clock.wall() + self.life_s
        key = self.gives or f"{SECRET}{len(self.asked)}"
        return Found(key, "test", expires_at, self.account, self.is_fixed, self.is_estimate)


def in_virtual_time(work: Callable[[CredentialKeeper, Source], Awaitable[None]], **source: object) -> None:
    """Do `work` with a keeper that has its first credentials."""

    async def main() -> None:
        clock = VirtualClock()
        made = Source(clock, **source)  # type: ignore[arg-type]
        keeper = CredentialKeeper(made, clock=clock)
        await keeper.renew()
        await work(keeper, made)
        await keeper.close()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def reason(keeper: CredentialKeeper) -> str:
    with pytest.raises(NoCredentials) as caught:
        keeper.check()
    return str(caught.value)


async def called_every(keeper: CredentialKeeper, seconds: float, until_s: float) -> list[str]:
    """Check as calls do; return the keys they were signed with, or the word `none`."""
    keys = []
    while asyncio.get_running_loop().time() < until_s:
        try:
            keeper.check()
            keys.append(str(keeper.use().frozen))
        except NoCredentials:
            keys.append("none")
        await asyncio.sleep(seconds)
    return keys


def test_a_refresh_comes_ahead_of_expiry_and_no_call_waits() -> None:
    """An hour's credentials are renewed once, 15 minutes before their end; every call has some."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        keys = await called_every(keeper, 1.0, 5_000.0)
        assert "none" not in keys
        assert source.asked == [0.0, pytest.approx(2_700, abs=1.2)]
        assert (len(set(keys)), source.most) == (2, 1)

    in_virtual_time(work)


@pytest.mark.parametrize("life_s", [2.0, 60.0, 600.0])
def test_short_lives_are_not_refreshed_on_every_call(life_s: float) -> None:
    """Credentials that live shorter than the SDK's windows are used for three quarters of their life."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        keys = await called_every(keeper, 0.01 * life_s, 20 * life_s)
        assert "none" not in keys
        assert len(source.asked) <= 20 / 0.75 + 1

    in_virtual_time(work, life_s=life_s)


def test_an_estimated_expiry_is_not_relied_upon() -> None:
    """An instance's old credentials look good for 17 minutes more; new ones come five before their end."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        await called_every(keeper, 1.0, 1_000.0)
        assert 3 <= len(source.asked) <= 8

    in_virtual_time(work, life_s=1_020.0, is_estimate=True)


def test_credentials_without_an_expiry_are_asked_for_once() -> None:
    """Nobody says when they end, so only the service can tell."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        await called_every(keeper, 600.0, 1e6)
        assert len(source.asked) == 1

    in_virtual_time(work, life_s=None)


def test_one_refresh_serves_all_and_outlives_those_who_leave() -> None:
    """A thousand calls and renewals at once ask once; one that is cancelled cancels nothing."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        await asyncio.sleep(4_000)
        source.takes_s = 30.0
        impatient = asyncio.create_task(asyncio.wait_for(keeper.renew(), 5.0))
        patient = [asyncio.create_task(keeper.renew()) for _ in range(100)]
        await asyncio.sleep(1)
        for _ in range(1_000):
            assert reason(keeper) == "credentials expired 7 min ago and are being refreshed, for 1 s so far"
        assert isinstance((await asyncio.gather(impatient, return_exceptions=True))[0], TimeoutError)
        await asyncio.gather(*patient)
        keeper.check()
        assert (len(source.asked), source.most) == (2, 1)

    in_virtual_time(work)


def test_a_failing_refresh_is_tried_again_with_growing_pauses() -> None:
    """What is at hand is used to its end; then nothing is, and it is still asked at most once a minute."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        source.broken = True
        keys = await called_every(keeper, 0.5, 3_598.0)
        assert "none" not in keys
        assert len(keys) > 7_000
        tries = source.asked[1:]
        pauses = [b - a for a, b in itertools.pairwise(tries)]
        assert pauses[:4] == [pytest.approx(1.0 * 2**n, abs=0.7) for n in range(4)]
        assert all(pause >= 60 for pause in pauses[8:])
        await asyncio.sleep(42.0)
        said = reason(keeper)
        assert "expired 40 s ago and cannot be refreshed: the cable is out; plug it in" in said
        source.broken = False
        await keeper.renew()
        keeper.check()

    in_virtual_time(work)


def test_a_refresh_that_hangs_is_given_up() -> None:
    """A program that waits for somebody is not waited for for ever."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        await asyncio.sleep(3_700)
        source.takes_s = 1e9
        began = asyncio.get_running_loop().time()
        with pytest.raises(NoCredentials, match="more than 60 s"):
            await keeper.renew()
        assert asyncio.get_running_loop().time() - began == REFRESH_S

    in_virtual_time(work)


def test_what_the_service_calls_expired_is_not_used_again() -> None:
    """One refresh is forced; the same key again is no answer, another one is."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        keeper.reject(keeper.use())
        said = "the service says that the credentials expired; they are being refreshed, for 0 s so far"
        assert reason(keeper) == said
        with pytest.raises(NoCredentials, match="the same ones came back") as caught:
            await keeper.renew()
        assert not caught.value.is_final
        assert len(source.asked) == 2
        source.gives = "another"
        await keeper.renew()
        assert keeper.use().frozen == "another"

    in_virtual_time(work, life_s=None, gives="first")


def test_a_late_complaint_does_not_cost_the_new_credentials() -> None:
    """A call signed with the old ones comes home after the refresh: the new ones stay."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        old = keeper.use()
        await keeper.renew()
        keeper.reject(old)
        keeper.check()
        await keeper.renew()
        assert len(source.asked) == 2, "nobody has tried the new ones yet"

    in_virtual_time(work)


def test_the_own_environment_cannot_bring_others() -> None:
    """Waiting for it would be in vain, and the refusal says so."""

    async def work(keeper: CredentialKeeper, _source: Source) -> None:
        keeper.reject(keeper.use())
        with pytest.raises(NoCredentials, match="environment") as caught:
            await keeper.renew()
        assert caught.value.is_final

    in_virtual_time(work, life_s=None, gives="first", is_fixed=True)


def test_another_account_is_refused_for_good() -> None:
    """Before the first call with it, in the background too; the account that is not told is no other."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        source.account = None
        keeper.use()
        await keeper.renew()
        assert keeper.refusal is None
        source.account = "444455556666"
        await asyncio.sleep(2_800)
        keeper.check()
        await asyncio.sleep(1)
        assert "444455556666" in reason(keeper)
        assert isinstance(keeper.refusal, PlanMismatch)
        source.account = "111122223333"
        with pytest.raises(NoCredentials):
            await keeper.renew()
        assert len(source.asked) == 3

    in_virtual_time(work, account="111122223333")


def test_a_clock_that_is_ahead_is_told() -> None:
    """Credentials that come expired are no credentials; the sentence speaks of this host's clock."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        await asyncio.sleep(3_700)
        source.life_s = -90.0
        with pytest.raises(NoCredentials, match="90 s ago by this host's clock"):
            await keeper.renew()

    in_virtual_time(work)


def test_a_host_that_slept_does_not_sign_with_what_expired() -> None:
    """The wall clock counts, whatever the monotonic one says."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        source.clock.skew_s = 86_400.0
        assert "expired 23 h 00 min ago" in reason(keeper)
        await keeper.renew()
        keeper.check()

    in_virtual_time(work)


def test_no_credentials_at_the_start() -> None:
    """The reason is the chain's own."""

    async def main() -> None:
        source = Source(VirtualClock(), broken=True)
        keeper = CredentialKeeper(source, clock=source.clock)
        with pytest.raises(NoCredentials, match=r"^the cable is out; plug it in$"):
            await keeper.renew()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(main())


def test_nothing_of_a_key_is_shown() -> None:
    """Neither by `repr` nor by a message."""

    async def work(keeper: CredentialKeeper, source: Source) -> None:
        shown = repr(keeper.use())
        source.broken = True
        await asyncio.sleep(3_700)
        assert "CANARY" not in shown + reason(keeper) + repr(keeper)

    in_virtual_time(work)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40.4, "40 s"), (119, "119 s"), (125, "2 min"), (3_599, "1 h 00 min"), (7_800, "2 h 10 min")],
)
def test_spans_are_said_as_people_say_them(seconds: float, text: str) -> None:
    """Seconds while they matter."""
    assert span(seconds) == text
