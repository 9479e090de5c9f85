"""The lane's state: doubt, outage, quota, refusal, trial and patience."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher.model import Answer, Kind, Pace
from dispatcher.policy.lane import FLOWING, LANE_TRANSITIONS, LanePolicy, LaneState

GOOD = [kind for kind in Kind if Answer(kind=kind).pace is Pace.OK]
FAULTS = [Kind.NO_REPLY, Kind.UNREACHABLE, Kind.UNREADABLE]


def lane(*, proven: bool = True, patience_s: float = 3600.0) -> LanePolicy:
    return LanePolicy(patience_s=patience_s, max_in_flight=64, now_s=100.0, proven=proven)


def feed(policy: LanePolicy, kind: Kind, times: int = 1, *, now_s: float = 100.0) -> LaneState:
    for _ in range(times):
        policy.observe(Answer(kind=kind, code="Code", message="said"), now_s)
    return policy.state


def probed(policy: LanePolicy, kind: Kind, times: int) -> list[float]:
    """Probe at the instants the policy asks for; return the seconds between them."""
    now_s, waits = 100.0, []
    for _ in range(times):
        waits.append(policy.probe_in_s(now_s))
        now_s += waits[-1]
        feed(policy, kind, now_s=now_s)
    return waits


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_in_a_row_slow_and_then_pause_a_lane(kind: Kind) -> None:
    """Five slow it to eight calls in flight; twenty make an outage, in which no new batch starts."""
    policy = lane()
    assert feed(policy, kind, 4) is LaneState.OPEN
    assert policy.window == 64
    assert feed(policy, kind) is LaneState.SLOWED
    assert policy.window == 8
    assert feed(policy, kind, 14) is LaneState.SLOWED
    assert policy.is_flowing
    assert feed(policy, kind) is LaneState.PROBING
    assert not policy.is_flowing


@pytest.mark.parametrize("kind", [*GOOD, Kind.THROTTLED, Kind.BARE_THROTTLE])
def test_a_sign_of_life_ends_an_outage(kind: Kind) -> None:
    """Whatever the service itself says opens the lane, and faults are counted from none again."""
    policy = lane()
    feed(policy, Kind.NO_REPLY, 20)
    assert feed(policy, kind) is LaneState.OPEN
    assert feed(policy, Kind.NO_REPLY, 4) is LaneState.OPEN


def test_probes_come_at_growing_intervals() -> None:
    """From half a second, doubling, to ten; a good answer begins anew."""
    policy = lane()
    feed(policy, Kind.NO_REPLY, 20)
    waits = probed(policy, Kind.NO_REPLY, 7)
    assert waits == [0.5, 1.0, 2.0, 4.0, 8.0, 10.0, 10.0]
    feed(policy, Kind.ACCEPTED)
    feed(policy, Kind.NO_REPLY, 20)
    assert policy.probe_in_s(100.0) == 0.5


@pytest.mark.parametrize(("kind", "begin", "first_s"), [(Kind.NO_REPLY, 20, 0.5), (Kind.QUOTA, 1, 2.0)])
def test_stragglers_do_not_put_off_the_first_probe(kind: Kind, begin: int, first_s: float) -> None:
    """Calls that were in flight when the lane paused are not probes."""
    policy = lane()
    feed(policy, kind, begin)
    feed(policy, kind, 7)
    assert policy.probe_in_s(100.0) == first_s


def test_a_used_up_quota_pauses_the_lane() -> None:
    """It probes singly, from two seconds to a minute apart, and opens with the first acceptance."""
    policy = lane()
    assert feed(policy, Kind.QUOTA) is LaneState.PAUSED
    waits = probed(policy, Kind.QUOTA, 7)
    assert waits == [2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]
    assert feed(policy, Kind.ACCEPTED) is LaneState.OPEN


def test_no_patience_at_all_still_lets_good_answers_pass() -> None:
    """`patience_s: 0` stops at the first answer that is not good, and not at one that is."""
    policy = lane(patience_s=0.0)
    policy.observe(Answer(kind=Kind.ACCEPTED), 101.0)
    assert policy.state is LaneState.OPEN
    policy.observe(Answer(kind=Kind.THROTTLED), 101.5)
    assert policy.state is LaneState.STOPPED


@pytest.mark.parametrize("kind", [Kind.THROTTLED, Kind.BARE_THROTTLE, Kind.QUOTA, *FAULTS])
def test_patience_counts_from_the_last_good_answer(kind: Kind) -> None:
    """Throttle, quota and fault do not renew it; the reason names the limit and the last answer."""
    policy = lane(patience_s=60.0)
    feed(policy, Kind.ACCEPTED, now_s=150.0)
    assert feed(policy, kind, now_s=209.0) is not LaneState.STOPPED
    assert policy.probe_in_s(209.0) <= 1.0
    assert feed(policy, kind, now_s=210.0) is LaneState.STOPPED
    assert policy.reason is not None
    assert "60 s" in policy.reason
    assert "Code: said" in policy.reason


@pytest.mark.parametrize("kind", GOOD)
def test_patience_is_renewed_by_what_is_neither_throttle_quota_nor_fault(kind: Kind) -> None:
    """A rejected device is the device's fault, not the lane's: the service works."""
    policy = lane(patience_s=60.0)
    for now_s in (150.0, 200.0, 250.0):
        assert feed(policy, kind, now_s=now_s) is LaneState.OPEN
    policy.check_patience(None, 309.0)
    assert policy.reason is None
    policy.check_patience(None, 310.0)
    assert policy.state is LaneState.STOPPED


def test_five_odd_answers_in_a_row_stop_the_lane() -> None:
    """A proxy's or a captive portal's answers are not retried for an hour; others in between reset it."""
    policy = lane()
    feed(policy, Kind.ODD, 4)
    feed(policy, Kind.NO_REPLY)
    assert feed(policy, Kind.ODD, 4) is LaneState.SLOWED
    assert feed(policy, Kind.ODD) is LaneState.STOPPED
    assert policy.reason is not None
    assert "not its own" in policy.reason


def test_a_refusal_is_final_after_one_renewal() -> None:
    """Credentials and clock are renewed once; the next refusal stops the lane and says why."""
    policy = lane()
    assert feed(policy, Kind.DENIED, 8) is LaneState.DENIED  # the calls in flight do not stop it
    assert policy.probe_in_s(100.0) == 0.0
    policy.renewed()
    assert feed(policy, Kind.DENIED) is LaneState.STOPPED
    assert policy.reason is not None
    assert "credentials or permissions" in policy.reason


def test_a_renewal_that_helped_may_be_needed_again() -> None:
    """Credentials that expire every hour of a long run are renewed every hour."""
    policy = lane()
    for _ in range(3):
        assert feed(policy, Kind.DENIED) is LaneState.DENIED
        policy.renewed()
        assert feed(policy, Kind.ACCEPTED) is LaneState.OPEN


def test_an_unproven_lane_flies_eight_calls() -> None:
    """Until this run had a task accepted here; poison and throttles prove nothing."""
    policy = lane(proven=False)
    for kind in set(Kind) - {Kind.ACCEPTED, Kind.DENIED, Kind.QUOTA, Kind.ODD}:
        feed(policy, kind)
        assert policy.window == 8
    feed(policy, Kind.ACCEPTED)
    assert policy.window == 64
    assert LanePolicy(patience_s=1.0, max_in_flight=3, now_s=0.0).window == 3


def test_a_trial_is_decided_by_its_devices() -> None:
    """It waits throttles, quotas and faults out, opens on an acceptance, and stops where there is none."""
    policy = lane(proven=False)
    policy.begin_trial()
    for kind in (Kind.POISON, Kind.THROTTLED, Kind.QUOTA, Kind.NO_REPLY, Kind.ACCEPTED):
        assert feed(policy, kind, 25) is LaneState.TRIAL
    policy.end_trial(accepted=True, now_s=100.0, because="")
    assert policy.state is LaneState.OPEN
    other = lane(proven=False)
    other.begin_trial()
    other.end_trial(accepted=False, now_s=100.0, because="wrong region")
    assert (other.state, other.reason) == (LaneState.STOPPED, "wrong region")
    other.end_trial(accepted=True, now_s=100.0, because="")
    assert other.state is LaneState.STOPPED


def test_a_trial_has_no_endless_patience() -> None:
    """A service that only throttles stops a trial as it stops a run."""
    policy = lane(proven=False, patience_s=60.0)
    policy.begin_trial()
    assert feed(policy, Kind.THROTTLED, now_s=160.0) is LaneState.STOPPED


def test_a_stopped_lane_stays_stopped() -> None:
    """Neither a late acceptance nor another reason changes it."""
    policy = lane()
    policy.stop("first")
    policy.stop("second")
    for kind in Kind:
        assert feed(policy, kind) is LaneState.STOPPED
    assert policy.reason == "first"


def test_an_illegal_move_raises() -> None:
    """A trial can only begin while the lane flows."""
    policy = lane()
    feed(policy, Kind.QUOTA)
    with pytest.raises(ValueError, match="paused to trial"):
        policy.begin_trial()


def test_the_table_names_every_state() -> None:
    """Every state has its row, stopped is final, and nothing but a flow or a trial's end opens a trial."""
    assert LANE_TRANSITIONS.keys() == set(LaneState)
    assert LANE_TRANSITIONS[LaneState.STOPPED] == frozenset()
    assert {state for state, to in LANE_TRANSITIONS.items() if LaneState.TRIAL in to} == FLOWING
    assert all(LaneState.STOPPED in to for state, to in LANE_TRANSITIONS.items() if to)


STEPS = st.lists(
    st.tuples(
        st.sampled_from([*Kind, "renewed", "trial", "opens", "fails"]),
        st.integers(1, 25),
        st.floats(0.0, 40.0),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(steps=STEPS, proven=st.booleans())
def test_no_walk_leaves_the_table(steps: list[tuple[Kind | str, int, float]], proven: bool) -> None:
    """Any answers at any instants: no illegal move, a reason whenever it is not open, probes in range."""
    policy = lane(proven=proven, patience_s=300.0)
    now_s = 100.0
    for what, times, later_s in steps:
        now_s += later_s
        was = policy.state
        if isinstance(what, Kind):
            feed(policy, what, times, now_s=now_s)
        elif what == "renewed":
            policy.renewed()
        elif what == "trial" and policy.is_flowing:
            policy.begin_trial()
        elif what in ("opens", "fails"):
            policy.end_trial(accepted=what == "opens", now_s=now_s, because="why")
        if was is LaneState.STOPPED:
            assert policy.state is LaneState.STOPPED
        assert (policy.reason is None) is (policy.state is LaneState.OPEN)
        assert 0.0 <= policy.probe_in_s(now_s) <= 60.0 + 1e-6
        assert 1 <= policy.window <= 64


def test_credentials_that_are_missing_pause_a_lane() -> None:
    """The first renewal comes at once, the next from a second to half a minute apart."""
    policy = lane()
    assert feed(policy, Kind.NO_CREDENTIALS) is LaneState.PAUSED
    assert (policy.lacks_credentials, policy.reason, policy.faults) == (True, "said", 0)
    now_s, waits = 100.0, []
    for _ in range(8):
        waits.append(policy.probe_in_s(now_s))
        now_s += waits[-1]
        policy.renewed()
        assert not policy.lacks_credentials
        feed(policy, Kind.NO_CREDENTIALS, now_s=now_s)
    assert waits == [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    policy.renewed()
    assert feed(policy, Kind.ACCEPTED, now_s=now_s) is LaneState.OPEN
    assert policy.reason is None


@pytest.mark.parametrize("kind", [*GOOD, *FAULTS, Kind.THROTTLED, Kind.QUOTA, Kind.EXPIRED])
def test_an_answer_to_an_earlier_call_brings_no_credentials(kind: Kind) -> None:
    """What was sent before they expired comes home later: the lane stays paused until they are renewed."""
    policy = lane()
    feed(policy, Kind.EXPIRED)
    assert feed(policy, kind, 30) is LaneState.PAUSED
    assert policy.lacks_credentials
    assert policy.reason == "the service says that the credentials expired (Code: said)"


def test_expired_again_after_a_renewal_is_a_pause_and_no_end() -> None:
    """The next login may bring better ones; a permission that is missing does not come by waiting."""
    policy = lane()
    feed(policy, Kind.EXPIRED)
    policy.renewed()
    assert feed(policy, Kind.EXPIRED) is LaneState.PAUSED
    assert policy.probe_in_s(100.0) > 0
    policy.renewed()
    assert feed(policy, Kind.DENIED) is LaneState.STOPPED


def test_patience_left_is_what_a_nap_may_take() -> None:
    """It counts from the last good answer, and never below nothing."""
    policy = lane(patience_s=60.0)
    assert policy.patience_left_s(110.0) == 50.0
    feed(policy, Kind.ACCEPTED, now_s=110.0)
    assert policy.patience_left_s(150.0) == 20.0
    assert policy.patience_left_s(500.0) == 0.0


def test_patience_that_is_left_and_patience_that_is_over_agree() -> None:
    """Where no patience is left the lane stops, however the floats round: or it would spin."""
    policy = LanePolicy(patience_s=3_600.0, max_in_flight=64, now_s=7_296.838749)
    now_s = policy.last_good_s + policy.patience_s
    assert now_s - policy.last_good_s < policy.patience_s, "these floats no longer show it"
    assert policy.patience_left_s(now_s) == 0.0
    policy.check_patience(None, now_s)
    assert policy.state is LaneState.STOPPED
