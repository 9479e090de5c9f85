"""Metrics and spans with the real libraries: names, labels, and nothing at all when they are off."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from dispatcher import Inventory, Limits, Manifest, Settings, UsageError, open_dispatcher
from dispatcher.emulator.app import run_emulator
from dispatcher.emulator.config import Config
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id
from dispatcher.metrics import KEPT_RUNS, Metrics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from dispatcher import Dispatcher

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
BAD = 'evil"} 1\\nsmd'.replace(" ", "_")
IDS = [fleet_id(number) for number in range(95)]


def manifest(**changes: Any) -> Manifest:
    values: dict[str, Any] = {
        "name": "ops", "command": "reboot", "region": "us-west-2",
        "inventory": Inventory(targets=[*IDS, BAD]), "limits": Limits(rate_per_s=500, burst=20),
    }  # fmt: skip
    return Manifest(**(values | changes))


def with_emulator(folder: Path, work: Callable[[Dispatcher], Awaitable[None]], **options: Any) -> None:
    async def go() -> None:
        registry = options.pop("registry", None)
        async with run_emulator(Config(fleet=GeneratedFleet(95))) as emulator:
            settings = Settings(state_dir=folder, endpoint_url=emulator.url, **options)
            async with open_dispatcher(settings, registry=registry) as opened:
                await work(opened)

    asyncio.run(go())


def documented() -> dict[str, tuple[str, set[str]]]:
    """Every metric of the page: name → type and labels."""
    rows = re.findall(r"^\| `(snow_dispatcher_\w+)` \| (\w+) \| ([^|]*) \|", PAGE, re.MULTILINE)
    return {name: (kind, set(re.findall(r"`(\w+)`", labels))) for name, kind, labels in rows}


def test_the_endpoint_serves_what_the_page_says(tmp_path: Path) -> None:
    """Each name, type and label of the page, and no other; to this machine alone; no device in any line."""

    async def work(opened: Dispatcher) -> None:
        summary = await opened.run(manifest())
        assert opened.metrics_url is not None
        assert opened.metrics_url.startswith("http://127.0.0.1:")
        text = (
            await asyncio.to_thread(lambda: urllib.request.urlopen(str(opened.metrics_url)).read())
        ).decode()
        assert "smd" not in text
        assert "evil" not in text
        found = {}
        for family in text_string_to_metric_families(text):
            name = family.name + ("_total" if family.type == "counter" else "")
            if not name.endswith("_created"):
                labels = {key for sample in family.samples for key in sample.labels}
                found[name] = (family.type, labels - {"le"})
        assert found == documented()
        assert 'snow_dispatcher_devices{run="ops",state="accepted"} 95.0' in text
        assert f'snow_dispatcher_calls_total{{run="ops"}} {summary.calls}.0' in text
        assert 'snow_dispatcher_run_exit_code{run="ops"} 1.0' in text

    with_emulator(tmp_path, work, metrics=0)


def test_a_registry_of_the_program(tmp_path: Path) -> None:
    """It is reported to without an endpoint, by one dispatcher at a time, and left at the end."""
    registry = CollectorRegistry()

    async def work(opened: Dispatcher) -> None:
        await opened.run(manifest())
        assert opened.metrics_url is None
        assert registry.get_sample_value("snow_dispatcher_devices", {"run": "ops", "state": "rejected"}) == 1
        with pytest.raises(UsageError, match="another dispatcher reports"):
            Metrics(registry)

    with_emulator(tmp_path, work, registry=registry)
    assert list(registry.collect()) == []


def test_old_runs_are_dropped(tmp_path: Path) -> None:
    """However many runs a program makes, the newest few are shown."""
    registry = CollectorRegistry()

    async def work(opened: Dispatcher) -> None:
        for number in range(KEPT_RUNS + 4):
            await opened.run(manifest(run_key=f"k{number}", inventory=Inventory(targets=IDS[:3])))
        shown = {s.labels["run"] for family in registry.collect() for s in family.samples}
        assert shown == {f"ops@k{number}" for number in range(4, KEPT_RUNS + 4)}

    with_emulator(tmp_path, work, registry=registry)


def test_spans_of_a_run(tmp_path: Path) -> None:
    """One of the run, one a call with a link to it; attributes as the page lists them, and no device."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    trace.set_tracer_provider(provider)  # once a process: this is the only test that does
    summaries = []

    async def work(opened: Dispatcher) -> None:
        summaries.append(await opened.run(manifest()))

    with_emulator(tmp_path, work, tracing=True)
    spans = exporter.get_finished_spans()
    (run,) = (span for span in spans if span.name == "dispatcher.run")
    calls = [span for span in spans if span.name == "CreateTask"]
    assert len(calls) == summaries[0].calls
    assert run.attributes is not None
    assert (run.attributes["dispatcher.accepted"], run.attributes["dispatcher.exit"]) == (95, 1)
    for span in calls:
        assert span.parent is None
        assert [link.context.span_id for link in span.links] == [run.get_span_context().span_id]
        assert span.start_time <= span.end_time
    rows = dict(re.findall(r"^\| `(dispatcher\.run|CreateTask)` \| \w+ \| (.*) \|$", PAGE, re.MULTILINE))
    for name, cells in rows.items():
        told = {key for span in spans if span.name == name for key in span.attributes or ()}
        assert told == set(re.findall(r"`([\w.]+)`", cells))
    assert not any("smd" in str(value) for span in spans for value in (span.attributes or {}).values())


def test_what_is_off_is_not_imported(tmp_path: Path) -> None:
    """A whole run without the flags loads neither library."""
    program = (
        "import asyncio, sys\n"
        "from dispatcher import *\n"
        "from dispatcher.emulator.app import run_emulator\n"
        "from dispatcher.emulator.config import Config\n"
        "async def go():\n"
        "    async with run_emulator(Config()) as e, open_dispatcher(\n"
        f"            Settings(state_dir={str(tmp_path)!r}, endpoint_url=e.url)) as d:\n"
        "        await d.run(Manifest(name='n', command='reboot', region='us-west-2',\n"
        "                             inventory=Inventory(targets=['a'])), on_event=lambda e: None)\n"
        "asyncio.run(go())\n"
        "found = {name.split('.')[0] for name in sys.modules}\n"
        "print(sorted(found & {'prometheus_client', 'opentelemetry'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("[]\n", "")


@pytest.mark.parametrize(
    ("flags", "module", "extra"),
    [(["--metrics", "0"], "prometheus_client", "prometheus"), (["--tracing"], "opentelemetry", "otel")],
)
def test_a_missing_extra_is_one_line(tmp_path: Path, flags: list[str], module: str, extra: str) -> None:
    """Exit 2 with what to install, before anything is planned."""
    (tmp_path / "m.yaml").write_text(
        "name: n\ncommand: reboot\nregion: us-west-2\ninventory: {targets: [a]}\n"
    )
    program = (
        f"import sys; sys.modules[{module!r}] = None\n"
        f"import dispatcher.cli; dispatcher.cli.main(['run', 'm.yaml', *{flags!r}])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path,
        env={"DISPATCHER_STATE_DIR": str(tmp_path / "state"), "PATH": "/usr/bin:/bin"},
    )  # fmt: skip
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"snow-dispatcher[{extra}]" in line
    assert not (tmp_path / "state").exists()
