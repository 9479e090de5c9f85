"""Which run is it, and where was it sent: endpoints, keys, lost and moved checkpoints."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Service, Site


def interrupted(site: Site, service: Service, manifest: str, *arguments: object, calls: int = 15) -> None:
    """Start a run and stop it part of the way."""
    process = site.start_run(manifest, service, *arguments)
    site.signal_after(process, service, calls, signal.SIGTERM)
    assert site.checked(site.end(process)).code == 143


def lose(site: Site) -> None:
    """Delete the checkpoint."""
    for path in site.state.glob("fleet.db*"):
        path.unlink()


def test_a_rehearsal_does_not_stand_for_the_real_run(site: Site, emulate: Emulators) -> None:
    """The same manifest on another endpoint is exit 4 and sends nothing; with --run-key it is another run."""
    rehearsal, other = emulate(60), emulate(60)
    manifest = site.manifest(site.ids(60))
    assert site.run(manifest, rehearsal).code == 0
    refused = site.run(manifest, other)
    assert (refused.code, refused.err.count("\n"), other.calls) == (4, 1, [])
    assert "--run-key" in refused.errors[0]
    done = site.run(manifest, other, "--run-key", "real")
    assert (done.code, done.summary["run"], done.summary["accepted"]) == (0, "fleet@real", 60)
    site.judge(other, done.summary)
    assert len(rehearsal.calls) == 6


def test_resume_refuses_another_endpoint(site: Site, emulate: Emulators) -> None:
    """A stored plan belongs to its endpoint and region."""
    service, other = emulate(60), emulate(60)
    assert site.run(site.manifest(site.ids(60)), service, "--limit", 10).code == 0
    for flags in (["--endpoint-url", other.url], ["--region", "eu-west-1"]):
        done = site.checked(site.do("resume", "fleet", "--json", *flags))
        assert (done.code, done.err.count("\n")) == (4, 1), done.err
    assert (len(service.calls), other.calls) == (1, [])


def test_a_run_key_names_the_run_to_resume(site: Site, emulate: Emulators) -> None:
    """What `--run-key` made, `--run-key` finds; it never resumes the run of another key in silence."""
    service = emulate(60)
    manifest = site.manifest(site.ids(60))
    assert site.run(manifest, service, "--limit", 10).code == 0
    assert site.run(manifest, service, "--limit", 20, "--run-key", "again").code == 0
    refused = site.do("resume", "fleet@other", "--run-key", "again", "--json")
    assert (refused.code, refused.err.count("\n"), len(service.calls)) == (2, 1, 3)
    unknown = site.do("resume", "fleet", "--run-key", "never", "--json")
    assert (unknown.code, unknown.err.count("\n"), len(service.calls)) == (2, 1, 3)
    path = site.state / "fleet.db"
    for arguments in ([path], ["fleet@again", "--checkpoint", path], [site.state / "no.db"], ["no.yaml"]):
        other = site.do("resume", *arguments, "--run-key", "again", "--json")
        assert (other.code, other.err.count("\n"), len(service.calls)) == (2, 1, 3), other.err
        assert "no.yaml@" not in other.err
        assert "no.db@" not in other.err
    elsewhere = site.do("resume", "fleet", "--run-key", "again", "--region", "eu-west-1", "--json")
    assert (elsewhere.code, elsewhere.summary["run"], len(service.calls)) == (4, "fleet@again", 3)
    for word in ("fleet", "fleet@again"):
        done = site.checked(site.do("resume", word, "--run-key", "again", "--json"))
        assert (done.code, done.summary["run"], done.summary["accepted"]) == (0, "fleet@again", 60)
    settled = site.do("reconcile", "fleet", "--run-key", "again", "--json")
    assert (settled.code, settled.summary["run"]) == (0, "fleet@again"), settled.err


def test_a_lost_checkpoint_is_rebuilt_inside_the_window(site: Site, emulate: Emulators) -> None:
    """All up to the registry's mark is in doubt and asked again by its token: exit 0, nobody twice."""
    service = emulate(400, latency_s=0.02)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest)
    before = service.tasks()
    lose(site)
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"]) == (0, 400), done.err
    assert before.items() <= service.tasks().items()
    assert len(service.tasks()) == 40
    site.judge(service, done.summary)


def test_a_lost_checkpoint_outside_the_window_is_refused(site: Site, emulate: Emulators) -> None:
    """Exit 4, one line that names the last path and reconcile; nothing sent."""
    service = emulate(400, latency_s=0.02)
    manifest = site.manifest(site.ids(400), limits={"token_window_s": 1, "rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest)
    lose(site)
    calls = len(service.calls)
    until = service.calls[0].at + 1.0
    site.wait_until(lambda: site.now() > until)
    done = site.run(manifest, service)
    assert (done.code, done.err.count("\n"), len(service.calls)) == (4, 1, calls), done.err
    assert str(site.checkpoint) in done.errors[0]
    assert "reconcile" in done.errors[0]
    again = site.run(manifest, service)
    assert (again.code, len(service.calls)) == (4, calls), "the refusal left something behind"


def test_a_lost_checkpoint_with_another_inventory_is_refused(site: Site, emulate: Emulators) -> None:
    """Other batches would carry other tokens, so nothing is rebuilt from an edited inventory."""
    service = emulate(400, latency_s=0.02)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest)
    lose(site)
    calls = len(service.calls)
    site.manifest(site.ids(400)[1:], limits={"rate_per_s": 100, "burst": 5})
    assert (site.run(manifest, service).code, len(service.calls)) == (4, calls)


def test_an_old_copy_of_a_checkpoint_is_noticed(site: Site, emulate: Emulators) -> None:
    """Restored from before more was sent: `resume` refuses it, `run` brings it up to the mark."""
    service = emulate(600, latency_s=0.02)
    manifest = site.manifest(site.ids(600), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest, calls=10)
    old = site.checkpoint.read_bytes()
    assert not site.checkpoint.with_name("fleet.db-wal").exists()
    interrupted(site, service, manifest, calls=30)
    site.checkpoint.write_bytes(old)
    calls = len(service.calls)
    resumed = site.checked(site.do("resume", "fleet", "--json"))
    assert (resumed.code, len(service.calls)) == (4, calls)
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], len(service.tasks())) == (0, 600, 60), done.err
    site.judge(service, done.summary)


def test_another_checkpoint_path_is_not_another_run(site: Site, emulate: Emulators) -> None:
    """A run that has its checkpoint elsewhere is refused, naming it; moved and named, it goes on."""
    service = emulate(400, latency_s=0.02)
    manifest = site.manifest(site.ids(400), limits={"rate_per_s": 100, "burst": 5})
    interrupted(site, service, manifest)
    calls = len(service.calls)
    moved = site.folder / "moved.db"
    refused = site.run(manifest, service, "--checkpoint", moved)
    assert (refused.code, len(service.calls)) == (4, calls)
    assert str(site.checkpoint) in refused.errors[0]
    moved.write_bytes(site.checkpoint.read_bytes())
    lose(site)
    done = site.run(manifest, service, "--checkpoint", moved)
    assert (done.code, done.summary["accepted"], len(service.tasks())) == (0, 400, 40), done.err
    site.judge(service, done.summary)


def test_another_runs_file_is_not_taken_for_it(site: Site, emulate: Emulators) -> None:
    """Restored under the wrong name: nobody who names the run gets, or sends, the other one."""
    service = emulate(60)
    manifest = site.manifest(site.ids(60))
    assert site.run(manifest, service, "--limit", 10).code == 0
    assert site.run(manifest, service, "--run-key", "other", "--limit", 10).code == 0
    other = site.state / "fleet@other.db"
    own, theirs = site.checkpoint.read_bytes(), other.read_bytes()
    site.checkpoint.write_bytes(theirs)
    calls = len(service.running.ledger.calls)
    for verb in ("status", "report", "resume", "reconcile"):
        refused = site.do(verb, "fleet")
        assert (refused.code, refused.out, len(refused.errors)) == (4, "", 1), refused.err
        assert "belongs to run fleet@other, not to fleet" in refused.errors[0]
    assert len(service.running.ledger.calls) == calls
    assert [line.split()[:2] for line in site.do("runs").out.splitlines()] == [
        ["fleet", "unreadable"],
        ["fleet@other", "resumable"],
    ]
    site.checkpoint.write_bytes(own)
    assert site.run(manifest, service).code == 0


def test_a_run_key_does_it_once_more(site: Site, emulate: Emulators) -> None:
    """Another key is another run with other tokens: each device gets a second task, as asked."""
    service = emulate(50)
    manifest = site.manifest(site.ids(50))
    assert site.run(manifest, service).code == 0
    done = site.run(manifest, service, "--run-key", "tonight")
    assert (done.code, done.summary["run"]) == (0, "fleet@tonight")
    assert set(service.tasks_of_devices().values()) == {2}


@pytest.mark.parametrize("name", ["finished", "rejected"])
def test_a_rerun_of_a_finished_run_sends_nothing(site: Site, emulate: Emulators, name: str) -> None:
    """`already_complete`, the code it ended with, and what to give to do it again."""
    service = emulate(95)
    manifest = site.manifest(site.ids(95) + (["smd-nobody"] if name == "rejected" else []))
    first = site.run(manifest, service)
    calls = len(service.calls)
    again = site.run(manifest, service)
    assert first.code == again.code == (name == "rejected")
    assert first.summary["already_complete"] is False
    assert (again.summary["already_complete"], again.summary["calls"], len(service.calls)) == (True, 0, calls)
    site.judge(service, again.summary)
    shown = site.do("run", manifest, "--endpoint-url", service.url)
    assert shown.code == first.code
    assert "already complete since" in shown.out
    assert "--run-key" in shown.out
    resumed = site.checked(site.do("resume", "fleet", "--json"))
    assert (resumed.code, resumed.summary["already_complete"]) == (first.code, True)
    assert len(service.calls) == calls
