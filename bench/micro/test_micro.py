"""What is called once per CreateTask call, alone: `python -m pytest bench/micro`.

Not collected by `make test`: a time is told here, never asserted.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry, generate_latest

from dispatcher.checkpoint.base import Plan
from dispatcher.checkpoint.sqlite import SqliteCheckpoint
from dispatcher.delivery import Delivery
from dispatcher.emulator.fleet import fleet_id
from dispatcher.metrics import Metrics
from dispatcher.model import BatchState, Lane, Outcome, Pace
from dispatcher.observe import Call, Hooks, Progress
from dispatcher.plan import ClientTokens, cut
from dispatcher.policy.rate_learner import RateLearner
from dispatcher.policy.token_bucket import TokenBucket
from dispatcher.settings import Settings
from dispatcher.tracing import RunTrace
from dispatcher.transport.base import answer_for
from dispatcher.transport.sigv4 import Signer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from dispatcher.model import Batch

TARGETS = tuple(sorted(map(fleet_id, range(10))))
BLOCK = 500
PLAN = Plan(
    plan_id="0" * 32,
    run="micro",
    command="reboot",
    region="us-west-2",
    intent_digest="",
    selection_digest="",
    inventory_digest="",
    planned_at=0.0,
)


def test_client_token_of_ten_targets(benchmark: Any) -> None:
    """One client token: a hash over ten ids, from the plan's prebuilt prefix."""
    tokens = ClientTokens(PLAN)
    assert len(benchmark(tokens.of, TARGETS)) == 64


def test_token_bucket_reserve(benchmark: Any) -> None:
    """One permit of a bucket that always has one."""
    instants = itertools.count(0.0, 0.01)
    bucket = TokenBucket(1000.0, 10, now_s=0.0)
    assert benchmark(lambda: bucket.reserve(next(instants))) == 0.0


def test_the_learner_observes_an_acceptance(benchmark: Any) -> None:
    """One call that leaves, and an accepted one taken in by the rate controller, latency 50 ms."""
    instants = itertools.count(1.0, 0.001)
    rate = RateLearner(1000.0, 900.0, now_s=0.0)

    def observe() -> float:
        now_s = next(instants)
        _, number = rate.departed(now_s)
        return rate.observe(now_s, Pace.OK, (now_s - 0.05, number - 50))

    assert benchmark(observe) > 0


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (429, "ThrottlingException", "Rate exceeded"),
        (404, "ResourceNotFoundException", f"no device {TARGETS[3]}"),
        (500, "InternalServerException", "oops"),
    ],
)
def test_answer_for_a_refusal(benchmark: Any, status: int, code: str, message: str) -> None:
    """One answer that is no success, made into facts."""
    assert benchmark(answer_for, status, code, message, TARGETS).code == code


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteCheckpoint]:
    """A checkpoint with more batches than any benchmark here claims."""
    checkpoint = SqliteCheckpoint.open(tmp_path / "micro.db", create=True)
    ids = sorted(map(fleet_id, range(400 * BLOCK * 10)))
    checkpoint.write_plan(PLAN, [Lane(index=0, region="us-west-2")], cut([ids]))
    checkpoint.acquire("{}", now=0.0)
    yield checkpoint
    checkpoint.close()


def test_store_claims_and_records_a_block(benchmark: Any, store: SqliteCheckpoint) -> None:
    """Two commits: 500 batches claimed, and their 500 outcomes recorded."""

    def claim_and_record() -> int:
        batches = store.claim(limit=BLOCK, max_devices=None, now=1.0)
        store.record([_accepted(batch) for batch in batches], now=2.0)
        return len(batches)

    assert benchmark.pedantic(claim_and_record, rounds=100, warmup_rounds=5) == BLOCK


def _accepted(batch: Batch) -> Outcome:
    task_id = f"st-{batch.number:017d}"
    return Outcome(
        batch.number, BatchState.ACCEPTED, 10, 1, 1.0, 2.0, task_id, f"arn:aws:x:y:z:task/{task_id}"
    )


CALL: dict[str, Any] = {
    "batch": 7,
    "devices": 10,
    "attempt": 1,
    "answer": "accepted",
    "task_id": "st-0",
    "sent_at": 1.0,
}


class _Told:
    """As the sender tells of a call that came back."""

    def __init__(self, hooks: Hooks) -> None:
        self._tell_call = hooks.call if hooks.hears_calls else None

    def came_back(self) -> None:
        if self._tell_call is not None:
            self._tell_call(Call(**CALL, elapsed_s=0.05))


class _Live:
    plan = PLAN
    progress = Progress()
    settings = Settings().resolve()


def test_a_call_that_nobody_hears_of(benchmark: Any) -> None:
    """Metrics and tracing off: one check."""
    benchmark(_Told(Hooks()).came_back)


def test_a_call_for_metrics(benchmark: Any) -> None:
    """Metrics on: one observation of the histogram, on the run's loop."""
    metrics, hooks = Metrics(), Hooks()
    hooks.hear_calls(metrics.follow(_Live()))
    benchmark(_Told(hooks).came_back)


def test_a_scrape_of_one_run(benchmark: Any) -> None:
    """What a scrape takes from the run, on a thread of its own: everything read and rendered."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics.follow(_Live())(Call(**CALL, elapsed_s=0.05))
    assert benchmark(generate_latest, registry)


def test_a_call_for_tracing(benchmark: Any) -> None:
    """Tracing on, as the run's loop pays for it: the call is put into a queue."""

    async def go() -> None:
        hooks = Hooks()
        delivery = Delivery(lambda _: None, run="micro")
        hooks.hear_calls(delivery.take)
        benchmark.pedantic(_Told(hooks).came_back, rounds=100, iterations=100)
        await delivery.finish()

    asyncio.run(go())


def test_a_span(benchmark: Any) -> None:
    """Tracing on, as the span thread pays for it: a span made and ended, sampled, exported nowhere."""
    trace.set_tracer_provider(TracerProvider())  # once a process: this is the only one that does
    spans = RunTrace(PLAN)
    benchmark(lambda: spans.call(Call(**CALL, elapsed_s=0.05)))


def test_signing_a_call(benchmark: Any) -> None:
    """What `transport.sigv4` takes for one request, its key and second known already."""
    signer = Signer(
        host="h", path="/task", headers={"Content-Type": "application/json"}, region="us-west-2", service="s"
    )
    benchmark(signer.sign, ReadOnlyCredentials("AK", "SK", "T"), 1_700_000_000, b"x" * 400)


def test_signing_a_call_with_the_sdk(benchmark: Any) -> None:
    """The same by botocore's signer, its request object made anew as it is for each call."""
    key = ReadOnlyCredentials("AK", "SK", "T")

    def sign() -> None:
        request = AWSRequest(
            "POST", "https://h/task", headers={"Content-Type": "application/json"}, data=b"x"
        )
        SigV4Auth(key, "s", "us-west-2").add_auth(request)

    benchmark(sign)
