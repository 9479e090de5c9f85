"""Which checkpoint a reconcile takes: the run's newest, or none; an older copy is brought up or refused."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

import pytest

from tests.e2e.test_identity import interrupted, lose
from tests.e2e.test_reconcile import age, forget, only_once, reconcile

if TYPE_CHECKING:
    from pathlib import Path

    from tests.e2e.conftest import Emulators, Service, Site

SLOW = {"rate_per_s": 100, "burst": 5}


@pytest.fixture
def service(emulate: Emulators) -> Service:
    return emulate(300, latency_s=0.02)


def copied(site: Site) -> Path:
    """Copy the checkpoint beside the state folder."""
    return shutil.copy(site.checkpoint, site.folder / "copy.db")


def put_back(site: Site, copy: Path) -> None:
    lose(site)
    shutil.copy(copy, site.checkpoint)


def test_a_manifest_brings_an_old_copy_up(site: Site, service: Service) -> None:
    """As the run's name does: what was sent since is found; a dry run of it cannot show that, and says so."""
    manifest = site.manifest(site.ids(300), limits=SLOW)
    interrupted(site, service, manifest, calls=8)
    copy = copied(site)
    interrupted(site, service, manifest, calls=20)
    put_back(site, copy)
    age(site)
    forget(service)
    words = (manifest, "--endpoint-url", service.url)
    for what in (words, ("fleet",)):
        refused = reconcile(site, *what, "--dry-run", code=4)
        assert "older than what the registry remembers" in refused["error"]
    found = reconcile(site, *words, code=1)
    assert found["accepted"] == len(service.tasks_of_devices())
    assert (found["behind"], found["pending"] > 0) == (False, True)
    only_once(service)


def test_an_old_copy_of_another_plan_is_planned_anew(site: Site, service: Service) -> None:
    """The manifest was edited since: only the manifest can tell, and not in a dry run."""
    ids = site.ids(300)
    manifest = site.manifest(ids[:200], limits=SLOW)
    assert site.run(manifest, service).code == 0
    copy = copied(site)
    assert site.run(site.manifest(ids, limits=SLOW), service).code == 0
    newer = reconcile(site, copy, code=4)["error"]
    assert f"reconcile the newer one: dispatcher reconcile {site.checkpoint}" in newer
    put_back(site, copy)
    age(site)
    forget(service)
    assert "planned from something else" in reconcile(site, "fleet", code=4)["error"]
    words = (manifest, "--endpoint-url", service.url)
    assert "leave --dry-run off" in reconcile(site, *words, "--dry-run", code=4)["error"]
    found = reconcile(site, *words)
    assert (found["devices"], found["accepted"]) == (300, 300)
    assert site.run(manifest, service).summary["calls"] == 0
    only_once(service)


def test_a_host_that_never_saw_the_run_may_reconcile_at_once(site: Site, service: Service) -> None:
    """Planned, and brought up from what the service lists; nothing is sent."""
    manifest = site.manifest(site.ids(60))
    assert site.run(manifest, service, "--limit", 40).code == 0
    site.state.rename(site.folder / "other")
    found = reconcile(site, manifest, "--endpoint-url", service.url, code=1)
    assert (found["accepted"], found["in_doubt"], len(service.calls)) == (40, 20, 4)
    only_once(service)


@pytest.mark.parametrize(
    ("name", "says"),
    [("fleet", "run fleet has its checkpoint at "), ("other", "belongs to run fleet, not to other")],
)
def test_a_checkpoint_that_is_not_the_manifests(site: Site, service: Service, name: str, says: str) -> None:
    """It lies elsewhere, or another run's lies in its place: refused, and nothing has changed."""
    manifest = site.manifest(site.ids(20))
    moved = site.folder / "moved.db"
    assert site.run(manifest, service, "--checkpoint", moved).code == 0
    kept = moved.read_bytes()
    manifest = site.manifest(site.ids(20), name=name)
    place = ("--checkpoint", moved) if name == "other" else ()
    refused = reconcile(site, manifest, "--endpoint-url", service.url, *place, code=4)
    assert says in refused["error"]
    assert moved.read_bytes() == kept
    assert not (site.state / "other.db").exists()
