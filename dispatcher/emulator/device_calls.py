"""The operations on devices: list them, describe them and what runs on them.

A device has no record: what it looks like is drawn from its id, how it is follows from its tasks.
"""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

from dispatcher.emulator.draws import draw, name_of
from dispatcher.emulator.fleet import job_id, job_index
from dispatcher.emulator.paging import Item, page
from dispatcher.emulator.reply import Method, Params, Reply, arn, not_found

if TYPE_CHECKING:
    from collections.abc import Iterator

    from dispatcher.emulator.config import Config
    from dispatcher.emulator.life import Life
    from dispatcher.emulator.tags import TagStore

_TYPES = ("SNC1_HDD", "SNC1_SSD", "V3_5C")
_INSTANCE = "AWS::EC2::Instance"
_MAX_INSTANCES = 3
_GB = 10**9
_MADE_AT = 1_735_689_600.0  # 2025-01-01: instances came with their device


class DeviceCalls:
    """Views of one service's fleet."""

    def __init__(self, config: Config, life: Life, tags: TagStore) -> None:
        self._config = config
        self._life = life
        self._tags = tags
        self.operations: dict[str, Method] = {
            "DescribeDevice": self.describe_device,
            "DescribeDeviceEc2Instances": self.describe_instances,
            "ListDeviceResources": self.list_resources,
            "ListDevices": self.list_devices,
        }

    def describe_device(self, params: Params, now_s: float, region: str) -> Reply:
        """Show one device: what it is, how it is, and when it last called home."""
        device_id = params["managedDeviceId"]
        if not self._exists(device_id, region):
            return not_found(device_id)
        reached_at = self._life.last_reached_out_at(device_id, now_s)
        chance = draw(self._config.seed, "device", device_id)
        used = int(1000 * chance) * _GB
        body = self._summary(device_id, self._config.fleet.index_of(device_id)) | {
            "deviceCapacities": [
                _capacity("HDD Storage", "Byte", 8000 * _GB, used),
                _capacity("vCPU", "Number", 4, len(self._instances(device_id))),
            ],
            "deviceState": self._life.device_state(device_id, now_s),
            "deviceType": _TYPES[int(chance * len(_TYPES))],
            "lastReachedOutAt": reached_at,
            "lastUpdatedAt": reached_at,
            "physicalNetworkInterfaces": [self._interface(device_id)],
            "software": {"installState": "UPDATED", "installedVersion": "2026-01"},
        }
        return Reply(200, body)

    def describe_instances(self, params: Params, now_s: float, region: str) -> Reply:
        """Show the named instances of one device; they run while it is unlocked."""
        device_id = params["managedDeviceId"]
        if not self._exists(device_id, region):
            return not_found(device_id)
        there = self._instances(device_id)
        for instance_id in params["instanceIds"]:
            if instance_id not in there:
                return not_found(f"{instance_id[:200]} on {device_id}")
        reached_at = self._life.last_reached_out_at(device_id, now_s)
        is_running = self._life.device_state(device_id, now_s) == "UNLOCKED"
        shown = [
            {"instance": _instance(instance_id, reached_at, is_running), "lastUpdatedAt": reached_at}
            for instance_id in dict.fromkeys(params["instanceIds"])
        ]
        return Reply(200, {"instances": shown})

    def list_resources(self, params: Params, now_s: float, region: str) -> Reply:  # noqa: ARG002
        """List what a device carries, optionally of one type."""
        device_id = params["managedDeviceId"]
        if not self._exists(device_id, region):
            return not_found(device_id)
        there = self._instances(device_id) if params.get("type") in {None, _INSTANCE} else []

        def items(start: int) -> Iterator[Item]:
            for position, instance_id in islice(enumerate(there), start, None):
                yield position, {"id": instance_id, "resourceType": _INSTANCE}

        return page("resources", params, items)

    def list_devices(self, params: Params, now_s: float, region: str) -> Reply:  # noqa: ARG002
        """List the fleet, optionally the devices of one job."""
        config = self._config
        count = len(config.fleet) if region == config.region else 0
        wanted = params.get("jobId")
        only = None if wanted is None else job_index(wanted)

        def items(start: int) -> Iterator[Item]:
            positions = range(start, count)
            if wanted is not None and not config.page_then_filter:
                positions = range(only, count) if only is not None else range(0)
                positions = positions[: 1 if start <= positions.start else 0]
            for position in positions:
                device_id = config.fleet.id_at(position)
                if device_id in config.bad_ids:
                    continue
                if wanted is None or position == only:
                    yield position, self._summary(device_id, position)
                else:
                    yield position, None

        return page("devices", params, items)

    def _exists(self, device_id: str, region: str) -> bool:
        return region == self._config.region and self._config.knows(device_id)

    def _summary(self, device_id: str, index: int | None) -> dict[str, object]:
        shown: dict[str, object] = {
            "managedDeviceArn": arn(self._config, "managed-device", device_id),
            "managedDeviceId": device_id,
            "tags": self._tags.of_device(device_id),
        }
        if index is not None:
            shown["associatedWithJob"] = job_id(index)
        return shown

    def _instances(self, device_id: str) -> list[str]:
        """Return the ids of the instances that a device carries: none to three."""
        count = int((_MAX_INSTANCES + 1) * draw(self._config.seed, "instances", device_id))
        return [f"s.i-{name_of(self._config.seed, 'instance', device_id, n)}" for n in range(count)]

    def _interface(self, device_id: str) -> dict[str, object]:
        number = int((1 << 24) * draw(self._config.seed, "address", device_id))
        octets = [number >> shift & 255 for shift in (16, 8, 0)]
        return {
            "defaultGateway": "10.0.0.1",
            "ipAddress": "10." + ".".join(map(str, octets)),
            "ipAddressAssignment": "DHCP",
            "macAddress": "02:00:00:" + ":".join(f"{octet:02x}" for octet in octets),
            "netmask": "255.0.0.0",
            "physicalConnectorType": "RJ45",
            "physicalNetworkInterfaceId": "s.ni-" + name_of(self._config.seed, "interface", device_id),
        }


def _capacity(name: str, unit: str, total: int, used: int) -> dict[str, object]:
    return {"available": total - used, "name": name, "total": total, "unit": unit, "used": used}


def _instance(instance_id: str, at: float, is_running: bool) -> dict[str, object]:
    name, code = ("RUNNING", 16) if is_running else ("STOPPED", 80)
    volume = {
        "attachTime": _MADE_AT,
        "deleteOnTermination": True,
        "status": "ATTACHED",
        "volumeId": instance_id.replace("s.i-", "s.vol-"),
    }
    return {
        "amiLaunchIndex": 0,
        "blockDeviceMappings": [{"deviceName": "/dev/sda1", "ebs": volume}],
        "cpuOptions": {"coreCount": 1, "threadsPerCore": 1},
        "createdAt": _MADE_AT,
        "imageId": "s.ami-0000000000000000",
        "instanceId": instance_id,
        "instanceType": "sbe-c.small",
        "privateIpAddress": "10.0.0.2",
        "rootDeviceName": "/dev/sda1",
        "securityGroups": [{"groupId": "s.sg-0000000000000000", "groupName": "default"}],
        "state": {"code": code, "name": name},
        "updatedAt": at,
    }
