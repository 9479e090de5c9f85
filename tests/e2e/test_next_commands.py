"""The command that a message prints is pasted into a shell, and works."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.e2e.conftest import DEADLINE_S, Done

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Site


@pytest.fixture
def odd(site: Site) -> Site:
    """A machine whose names have spaces and quotes, and whose state folder is known by --config alone."""
    site.folder = site.folder / "it's  a folder"
    site.folder.mkdir()
    del site.env["DISPATCHER_STATE_DIR"]
    site.env["HOME"] = str(site.folder)
    site.env["PATH"] = f"{Path(sys.executable).parent}:{site.env['PATH']}"
    (site.folder / "my settings.toml").write_text('state_dir = "my state"\n')
    return site


def fleet(site: Site, ids: list[str], **keys: object) -> str:
    """Write a manifest; return its odd name."""
    written = Path(site.manifest(ids, **keys))  # type: ignore[arg-type]
    shutil.copy(written, site.folder / "my $fleet.yaml")
    return "my $fleet.yaml"


def printed(said: str) -> str:
    """Return the command that a message ends with."""
    found = re.search(r"(?:dispatcher|chmod) [^`\n]*$", said.strip())
    assert found is not None, said
    return found[0]


def paste(site: Site, command: str) -> Done:
    """Run a command line as a shell does."""
    ended = subprocess.run(
        ["bash", "-c", command],
        env=site.env,
        cwd=site.folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    return Done(ended.returncode, ended.stdout, ended.stderr)


def counts(site: Site) -> dict[str, object]:
    """Return `status --json` of the run."""
    done = site.do("status", "fleet", "--config", "my settings.toml", "--json")
    assert done.code == 0, done.err
    found: dict[str, object] = json.loads(done.out)
    return found


def test_an_interrupted_run_is_resumed_as_it_was_started(odd: Site, emulate: Emulators) -> None:
    """The settings file, the checkpoint and --allow-network-fs go along; the plan knows the rest."""
    service = emulate(400, latency_s=0.02)
    manifest = fleet(odd, odd.ids(400), limits={"rate_per_s": 100, "burst": 5})
    process = odd.start(
        *("run", manifest, "--endpoint-url", service.url, "--config", "my settings.toml"),
        *("--checkpoint", "my night.db", "--allow-network-fs"),
    )
    odd.signal_after(process, service, 10, signal.SIGTERM)
    ended = odd.end(process)
    assert (ended.code, len(ended.errors)) == (143, 1), ended.err
    command = printed(ended.errors[0])
    assert "--config 'my settings.toml'" in command
    done = paste(odd, command)
    assert done.code == 0, done.err
    assert counts(odd)["accepted"] == 400
    assert max(service.tasks_of_devices().values()) == 1
    assert (odd.folder / "my night.db").exists()
    assert not (odd.folder / "state").exists()


def test_a_canary_that_was_interrupted_stays_one(odd: Site, emulate: Emulators) -> None:
    """--limit goes along: the printed command must not release the whole fleet."""
    service = emulate(400, latency_s=0.05)
    manifest = fleet(odd, odd.ids(400), limits={"rate_per_s": 20, "burst": 1})
    process = odd.start(
        *("run", manifest, "--endpoint-url", service.url, "--config", "my settings.toml", "--limit", 100),
    )
    odd.signal_after(process, service, 1, signal.SIGTERM)
    ended = odd.end(process)
    assert ended.code == 143, ended.err
    command = printed(ended.errors[0])
    assert command.endswith("--limit 100")
    sent = sum(service.tasks_of_devices().values())
    assert paste(odd, command).code == 0
    assert sum(service.tasks_of_devices().values()) == sent + 100


def test_removals_are_agreed_to_by_the_printed_command(odd: Site, emulate: Emulators) -> None:
    """The whole command, not the flag alone."""
    service = emulate(100)
    flags = ("--endpoint-url", service.url, "--config", "my settings.toml")
    assert odd.do("run", fleet(odd, odd.ids(100)), *flags, "--limit", 10).code == 0
    refused = odd.do("run", fleet(odd, odd.ids(100)[:60]), *flags)
    assert (refused.code, len(refused.errors)) == (2, 1), refused.err
    done = paste(odd, printed(refused.errors[0]))
    assert done.code == 0, done.err
    assert counts(odd)["cancelled"] == 40


def test_a_checkpoint_elsewhere_is_named_in_full(odd: Site, emulate: Emulators) -> None:
    """Exit 4 where the run has its checkpoint somewhere else, for `run`; for `resume`, an older copy."""
    service = emulate(60)
    flags = ("--endpoint-url", service.url, "--config", "my settings.toml")
    manifest = fleet(odd, odd.ids(60))
    assert odd.do("run", manifest, *flags, "--checkpoint", "my night.db", "--limit", 10).code == 0
    shutil.copy(odd.folder / "my night.db", odd.folder / "old.db")
    refused = odd.do("run", manifest, *flags, "--limit", 10)
    assert (refused.code, len(refused.errors)) == (4, 1), refused.err
    assert paste(odd, printed(refused.errors[0])).code == 0
    refused = odd.do("resume", "./old.db", "--config", "my settings.toml")
    assert (refused.code, len(refused.errors)) == (4, 1), refused.err
    done = paste(odd, printed(refused.errors[0]))
    assert done.code == 0, done.err
    assert counts(odd)["accepted"] == 60


def test_a_folder_that_others_may_write_to_is_closed(odd: Site, emulate: Emulators) -> None:
    """Exit 4 for every verb, one line, nothing sent; the printed command makes it ours alone."""
    service = emulate(20)
    manifest = fleet(odd, odd.ids(20))
    flags = ("--endpoint-url", service.url, "--config", "my settings.toml")
    state = odd.folder / "my state"
    state.mkdir()
    for words in (("run", manifest, *flags), ("status", "fleet", *flags[2:]), ("runs", *flags[2:])):
        state.chmod(0o777)
        refused = odd.do(*words)
        assert (refused.code, len(refused.errors), service.calls) == (4, 1, []), refused.err
        assert paste(odd, printed(refused.errors[0])).code == 0
    assert odd.do("run", manifest, *flags).code == 0


def test_status_names_the_command_that_goes_on(odd: Site, emulate: Emulators) -> None:
    """On stdout, with the settings file; what is in doubt or pending is asked for by its name."""
    service = emulate(60)
    manifest = fleet(odd, odd.ids(60))
    flags = ("--config", "my settings.toml")
    assert odd.do("run", manifest, "--endpoint-url", service.url, *flags, "--limit", 10).code == 0
    said = odd.do("status", "fleet", *flags)
    assert paste(odd, printed(said.out)).code == 0
    assert counts(odd)["state"] == "finished"


def test_a_second_runner_is_told_how_to_look(odd: Site, emulate: Emulators) -> None:
    """The refusal names `status` with the settings file."""
    service = emulate(2_000, latency_s=0.02)
    manifest = fleet(odd, odd.ids(2_000), limits={"rate_per_s": 50, "burst": 5})
    words = ("run", manifest, "--endpoint-url", service.url, "--config", "my settings.toml")
    process = odd.start(*words)
    odd.wait_until(lambda: len(service.calls) > 2)
    refused = odd.do(*words)
    assert (refused.code, len(refused.errors)) == (4, 1), refused.err
    found = re.search(r"`(dispatcher status [^`]*)`", refused.errors[0])
    assert found is not None
    told = paste(odd, found[1])
    assert (told.code, "running" in told.out) == (0, True), told.err
    process.send_signal(signal.SIGTERM)
    assert odd.end(process).code == 143
