"""What listens to a run may fail in any way: the run's result stands, and its end does not wait twice."""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import threading
import weakref
from typing import TYPE_CHECKING, Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from dispatcher import Inventory, Limits, Manifest, Settings, UsageError, open_dispatcher
from dispatcher import delivery as delivering
from dispatcher import tracing as spans
from dispatcher.checkpoint.base import Plan
from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config
from dispatcher.listening import Listeners
from dispatcher.metrics import Metrics
from dispatcher.observe import Call, Progress
from tests.e2e.conftest import Emulators, Site, emulate, site

if TYPE_CHECKING:
    from pathlib import Path

    from dispatcher.run import Run

__all__ = ["emulate", "site"]

HOSTILE = 'a"} 1\nevil{x="\\'


def manifest() -> Manifest:
    return Manifest(
        name="ops", command="reboot", region="us-west-2", limits=Limits(rate_per_s=500, burst=20),
        inventory=Inventory(targets=[f"smd-{i:04d}" for i in range(50)]),
    )  # fmt: skip


def run_once(folder: Path, **options: Any) -> Any:
    """Run 5 batches; return the summary."""

    async def go() -> Any:
        registry, before = options.pop("registry", None), options.pop("before", None)
        async with (
            run_emulator(Config()) as emulator,
            open_dispatcher(
                Settings(state_dir=folder, endpoint_url=emulator.url, **options), registry=registry
            ) as opened,
        ):
            return await opened.run(manifest(), before=before)

    return asyncio.run(go())


class Trace:
    """Stands in for a run's spans, whose processors are the program's own code."""

    def __init__(self, _plan: Plan) -> None:
        """Begin."""

    def call(self, _call: Call) -> None:
        """Hear a call."""

    def end(self, *_counts: object, **_numbers: object) -> None:
        """Hear the end."""


def test_spans_that_cannot_end_cost_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A processor that raises is logged once; the summary is returned."""

    class Broken(Trace):
        def end(self, *_counts: object, **_numbers: object) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr(spans, "RunTrace", Broken)
    assert run_once(tmp_path, tracing=True).counts.accepted == 50
    assert sum("raised" in record.message for record in caplog.records) == 1


def test_spans_that_cannot_begin_cost_the_run_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A sampler that raises is logged once; the run goes on without spans."""

    class Broken(Trace):
        def __init__(self, _plan: Plan) -> None:
            raise ZeroDivisionError

    monkeypatch.setattr(spans, "RunTrace", Broken)
    assert run_once(tmp_path, tracing=True).counts.accepted == 50
    assert sum("spans" in record.message for record in caplog.records) == 1


def test_a_span_that_never_ends_does_not_hold_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter may do its work where a span ends: on a thread, so that other runs keep their deadlines."""
    ended_on = []

    class Slow(Trace):
        def end(self, *_counts: object, **_numbers: object) -> None:
            ended_on.append(threading.current_thread())

    monkeypatch.setattr(spans, "RunTrace", Slow)
    assert run_once(tmp_path, tracing=True).counts.accepted == 50
    assert ended_on
    assert threading.main_thread() not in ended_on


def test_listeners_are_waited_for_together() -> None:
    """Two that are stuck cost the exit the time of one: each is waited for while the other is."""
    both = threading.Barrier(2)

    class Stuck:
        async def finish(self) -> None:
            await asyncio.to_thread(both.wait, 5)

        def stop(self) -> None:
            """Nothing to stop."""

    async def go() -> None:
        async with Listeners("r", on_event=None, metrics=None, tracing=False) as listeners:
            listeners._deliveries += [Stuck(), Stuck()]  # type: ignore[list-item]

    asyncio.run(go())


def test_a_run_that_ends_by_a_bug_is_heard_to_its_end() -> None:
    """Whatever ends a run but a cancellation, its events reach the hook first."""
    heard: list[Any] = []

    async def go() -> None:
        async with Listeners("r", on_event=heard.append, metrics=None, tracing=False) as listeners:
            for number in range(1_000):
                listeners.hooks.emit(Progress().event(f"r{number}"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        asyncio.run(go())
    assert len(heard) == 1_000


def test_a_coroutine_that_calls_exit_ends_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """As with a function: logged once, called on."""
    heard = []

    async def hook(event: object) -> None:
        heard.append(event)
        sys.exit(3)

    async def go() -> Any:
        async with (
            run_emulator(Config()) as emulator,
            open_dispatcher(Settings(state_dir=tmp_path, endpoint_url=emulator.url)) as opened,
        ):
            return await opened.run(manifest(), on_event=hook)

    assert asyncio.run(go()).counts.accepted == 50
    assert len(heard) > 5
    assert sum("an event hook raised" in record.message for record in caplog.records) == 1


def test_a_hook_that_fails_as_it_is_given_up_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A coroutine that raises when it is cancelled leaves no task that nobody asked for its error."""
    monkeypatch.setattr(delivering, "STUCK_S", 0.01)

    async def hook(_event: object) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            raise ValueError("on the way out")

    async def go() -> None:
        async with Listeners("r", on_event=hook, metrics=None, tracing=False) as listeners:
            listeners.hooks.emit(Progress().event("r"))

    asyncio.run(go())
    gc.collect()
    assert [r.name for r in caplog.records if r.levelname == "ERROR"] == ["dispatcher"]


def test_metrics_keep_no_run_alive(tmp_path: Path) -> None:
    """Of a run that is shown nothing stays in memory but its plan, its settings and its counters."""
    kept: list[weakref.ref[Run]] = []
    registry = CollectorRegistry()

    async def go() -> None:
        async with (
            run_emulator(Config()) as emulator,
            open_dispatcher(
                Settings(state_dir=tmp_path, endpoint_url=emulator.url), registry=registry
            ) as opened,
        ):
            await opened.run(manifest(), before=lambda run: kept.append(weakref.ref(run)))
            gc.collect()
            assert registry.get_sample_value("snow_dispatcher_run_exit_code", {"run": "ops"}) == 0
            assert kept[0]() is None

    asyncio.run(go())


def test_hostile_text_in_labels_stays_a_label(tmp_path: Path) -> None:
    """A run of a foreign checkpoint may be called anything: what is scraped can be read."""
    plan = Plan(
        plan_id="0", run=HOSTILE, command=HOSTILE, region=HOSTILE, intent_digest="", selection_digest="",
        inventory_digest="", planned_at=0.0,
    )  # fmt: skip

    class Foreign:
        progress = Progress()
        settings = Settings(state_dir=tmp_path).resolve()

    Foreign.plan = plan  # type: ignore[attr-defined]
    registry = CollectorRegistry()
    hear = Metrics(registry).follow(Foreign())  # type: ignore[arg-type]
    hear(Call(batch=1, devices=1, attempt=1, answer="accepted", task_id=HOSTILE, sent_at=0.0, elapsed_s=0.1))
    families = list(text_string_to_metric_families(generate_latest(registry).decode()))
    labels = {value for family in families for sample in family.samples for value in sample.labels.values()}
    assert HOSTILE in labels
    assert not any(family.name.startswith("evil") for family in families)


def test_a_taken_port_is_one_line_before_anything_is_sent(site: Site, emulate: Emulators) -> None:
    """Exit 2, and nothing is planned either."""
    service = emulate(20)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = site.run(site.manifest(site.ids(20)), service, "--metrics", port)
    assert (done.code, len(done.err.splitlines())) == (2, 1), done.err
    assert f"127.0.0.1:{port}: Address already in use" in done.err
    assert service.calls == []
    assert not site.checkpoint.exists()


@pytest.mark.parametrize("host", ["a" * 64, "a..b", "nowhere.invalid"])
def test_a_host_that_is_none_is_one_line(host: str) -> None:
    """Whatever the name service makes of it."""
    metrics = Metrics()
    with pytest.raises(UsageError, match=r"^metrics cannot be served at [^\n]*$"):
        metrics.serve(f"{host}:0")
    metrics.close()
