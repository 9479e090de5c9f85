"""An edited manifest: matched by device, settled devices never sent again."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.e2e.conftest import Emulators, Site


def test_reordered_rows_send_nothing_again(site: Site, emulate: Emulators) -> None:
    """Half way through and at the end, the order of rows means nothing."""
    service, ids = emulate(200), site.ids(200)
    manifest = site.manifest(ids)
    assert site.run(manifest, service, "--limit", 90).code == 0
    random.Random(1).shuffle(ids)
    site.manifest(ids)
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], done.summary["devices"]) == (0, 200, 200)
    site.judge(service, done.summary)
    calls = len(service.calls)
    site.manifest(ids[::-1] + ids[:50])
    again = site.run(manifest, service)
    assert (again.code, again.summary["calls"], again.summary["already_complete"]) == (0, 0, True)
    assert len(service.calls) == calls
    site.judge(service, again.summary)


def test_added_devices_are_sent_and_only_they(site: Site, emulate: Emulators) -> None:
    """A finished run takes new devices up; the settled ones keep their tasks."""
    service, ids = emulate(230), site.ids(230)
    manifest = site.manifest(ids[:100] + ids[115:215])
    assert site.run(manifest, service).code == 0
    before = service.tasks()
    site.manifest(ids)
    done = site.run(manifest, service)
    assert (done.code, done.summary["devices"], done.summary["accepted"]) == (0, 230, 230)
    new = {task: devices for task, devices in service.tasks().items() if task not in before}
    assert sorted(device for devices in new.values() for device in devices) == sorted(
        set(ids) - {device for devices in before.values() for device in devices}
    )
    site.judge(service, done.summary)


def test_removed_devices_are_never_sent(site: Site, emulate: Emulators) -> None:
    """Taking out unsent devices wants agreement; then they are cancelled, and come back when named again."""
    service, ids = emulate(100), site.ids(100)
    manifest = site.manifest(ids)
    assert site.run(manifest, service, "--limit", 20).code == 0
    site.manifest(ids[:92])
    asked = site.run(manifest, service)
    assert (asked.code, asked.errors[0].count("--yes")) == (2, 1)
    done = site.run(manifest, service, "--yes", "--limit", 20)
    assert (done.code, done.summary["accepted"], done.summary["cancelled"]) == (0, 40, 8)
    site.manifest(ids[:60])
    asked = site.run(manifest, service, "--yes")
    assert asked.code == 2
    assert "--accept-removals 32" in asked.errors[0]
    done = site.run(manifest, service, "--yes", "--accept-removals", 32)
    assert (done.code, done.summary["accepted"], done.summary["cancelled"]) == (0, 60, 40)
    site.judge(service, done.summary)
    assert set(service.tasks_of_devices()) == set(ids[:60])
    site.manifest(ids[:60] + ids[95:])
    done = site.run(manifest, service)
    assert (done.code, done.summary["accepted"], done.summary["cancelled"]) == (0, 65, 35)
    site.judge(service, done.summary)
    assert set(service.tasks_of_devices()) == set(ids[:60] + ids[95:])


def test_removed_settled_devices_stay_as_history(site: Site, emulate: Emulators) -> None:
    """A device that has its task is not a removal to agree to, and is not sent when it returns."""
    service, ids = emulate(60), site.ids(60)
    manifest = site.manifest(ids)
    assert site.run(manifest, service).code == 0
    site.manifest(ids[:10])
    done = site.run(manifest, service)
    assert (done.code, done.summary["calls"], done.summary["accepted"]) == (0, 0, 60)
    site.manifest(ids)
    assert site.run(manifest, service).summary["calls"] == 0
    assert len(service.calls) == 6


def test_an_empty_inventory_is_refused(site: Site, emulate: Emulators) -> None:
    """It is a mistake upstream, not an order to cancel everything."""
    service = emulate(60)
    manifest = site.manifest(site.ids(60))
    assert site.run(manifest, service, "--limit", 10).code == 0
    site.manifest([])
    done = site.run(manifest, service, "--yes", "--accept-removals", 60)
    assert (done.code, len(service.calls)) == (2, 1)


def test_another_command_is_another_intent(site: Site, emulate: Emulators) -> None:
    """Reboot edited to unlock: refused with a hint, nothing sent."""
    service = emulate(20)
    manifest = site.manifest(site.ids(20))
    assert site.run(manifest, service, "--limit", 10).code == 0
    site.manifest(site.ids(20), command="unlock")
    done = site.run(manifest, service)
    assert (done.code, len(service.calls)) == (4, 1)
    assert "--run-key" in done.errors[0]


def test_a_device_taken_out_while_in_doubt_is_not_sent_again(site: Site, emulate: Emulators) -> None:
    """A resend might create its task, so the batch is parked; when the device returns it goes on."""
    service, ids = emulate(100, latency_s=0.5), site.ids(100)
    manifest = site.manifest(ids, limits={"max_in_flight": 4})
    site.kill_after(site.start_run(manifest, service), service, 4)
    sent = {call.client_token for call in service.calls}
    doubtful = [device for devices in service.tasks().values() for device in devices]
    site.manifest([device for device in ids if device != doubtful[0]], limits={"max_in_flight": 4})
    done = site.run(manifest, service, "--accept-removals", 10, "--yes", "--no-reconcile")
    assert (done.code, done.summary["in_doubt"], done.summary["accepted"]) == (1, 10, 90), done.summary
    parked = {row["client_token"] for row in site.judge(service, done.summary) if row["state"] == "in_doubt"}
    assert parked < sent
    assert len([call for call in service.calls if call.client_token in parked]) == 1
    resumed = site.checked(site.do("resume", "fleet", "--json", "--no-reconcile"))
    assert (resumed.code, resumed.summary["calls"]) == (1, 0)
    site.manifest(ids, limits={"max_in_flight": 4})
    done = site.run(manifest, service, "--no-reconcile")
    assert (done.code, done.summary["accepted"]) == (0, 100), done.summary
    site.judge(service, done.summary)
