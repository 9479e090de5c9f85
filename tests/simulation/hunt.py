"""Mutants, hunted: how many seeds it takes to catch each planted bug."""

from __future__ import annotations

from typing import NamedTuple

from tests.simulation import wire_mutants  # noqa: F401  (it adds its own)
from tests.simulation.mutants import MUTANTS, planted
from tests.simulation.runs import run_seed

MAX_SEEDS = 1_000
CAUGHT_AT: dict[str, int] = {
    "token_from_attempt": 1,
    "token_from_process": 1,
    "token_without_targets": 1,
    "success_without_task_id": 84,
    "no_reply_is_not_created": 7,
    "unreadable_is_not_created": 44,
    "bare_throttle_is_not_created": 17,
    "odd_is_not_created": 239,
    "split_after_unknown": 7,
    "mismatch_is_sent_again": 115,
    "earlier_doubt_is_forgotten": 1,
    "told_before_commit": 63,
    "sent_before_claim": 1,
    "claim_is_not_marked": 1,
    "claim_is_dropped_early": 1,
    "crash_forgets_claims": 1,
    "crash_renews_doubt": 1,
    "doubt_is_renewed": 7,
    "commits_are_not_synced": 17,
    "registry_is_not_synced": 57,
    "outcome_is_lost": 4,
    "doubtful_is_given_back": 25,
    "window_is_ignored": 1,
    "window_without_margin": 422,
    "window_by_monotonic_time_alone": 110,
    "window_is_checked_before_the_wait": 28,
    "bucket_starts_full": 29,
    "refund_is_forgotten": 57,
    "bucket_has_no_cap": 2,
    "retries_need_no_permit": 1,
    "slots_are_not_counted": 15,
    "unproven_lane_is_wide": 97,
    "trial_is_skipped": 6,
    "trial_is_not_undone": 2,
    "trial_undoes_what_settled": 7,
    "halt_leaves_retries_in_line": 256,
    "held_batch_is_forgotten": 13,
    "lease_is_not_checked": 55,
    "fence_is_open": 55,
    "locks_are_not_taken": 148,
    "lost_checkpoint_is_planned_anew": 7,
    "stale_checkpoint_is_trusted": 57,
    "rebuild_forgets_doubt": 23,
    "rebuild_ignores_recuts": 57,
    "halves_lose_a_device": 1,
    "halves_overlap": 1,
    "tail_is_not_planned": 1,
    "duplicates_are_planned": 25,
    "removed_device_is_resent": 30,
    "removed_device_stays_planned": 30,
    "edit_resends_settled": 3,
    "returned_device_is_left_out": 34,
    "doubts_are_not_taken_up": 91,
    "given_back_is_not_fed_again": 48,
    "broken_call_is_written_again": 13,
    "broken_call_was_not_sent": 13,
    "deadline_is_not_watched": 88,
    "timed_out_connection_is_kept": 45,
    "cut_answer_is_whole": 71,
    "skew_is_not_corrected": 200,
}
"""How many seeds it took when docs/simulation.md was written: where `make test` looks first."""


class Catch(NamedTuple):
    """What caught a mutant."""

    name: str
    seeds: int | None
    """How many seeds it took; None where it escaped."""
    broken: str


def hunt(name: str, *, first: int = 0, limit: int = MAX_SEEDS) -> Catch:
    """Run seeds from `first` on with a planted bug until one breaks a promise."""
    with planted(name):
        for count in range(1, limit + 1):
            try:
                broken = run_seed(first + count - 1).broken
            except Exception as error:  # noqa: BLE001  (a bug may break the instrument too: that is a catch)
                broken = [f"{type(error).__name__}: {error}"]
            if broken:
                return Catch(name, count, broken[0])
    return Catch(name, None, "")


def table(catches: list[Catch]) -> str:
    """Render for docs/simulation.md."""
    lines = ["| planted bug | caught at seed | by |", "|---|---|---|"]
    for catch in catches:
        at = "escaped" if catch.seeds is None else str(catch.seeds)
        lines.append(f"| {MUTANTS[catch.name][0]} | {at} | {catch.broken.partition(':')[0]} |")
    return "\n".join(lines)
