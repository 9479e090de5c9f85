"""What every client has to do against the emulator: all 13 operations, in one order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dispatcher.emulator.fleet import fleet_id, job_id

if TYPE_CHECKING:
    from collections.abc import Callable

    Call = Callable[[str, dict[str, Any]], dict[str, Any]]
    """(operation, parameters) → what the client made of the answer."""

DEVICES = 12
TAGS = {"owner": "ops", "path": "a/b c"}


def walk(call: Call) -> None:
    """Run every operation once or more, and check that each answer belongs to the others."""
    targets = [fleet_id(0), fleet_id(1)]
    request = {"targets": targets, "command": {"unlock": {}}, "clientToken": "t1", "description": "Go!"}
    made = call("CreateTask", request | {"tags": TAGS})
    assert call("CreateTask", request | {"tags": TAGS})["taskId"] == made["taskId"]
    task = call("DescribeTask", {"taskId": made["taskId"]})
    assert (task["targets"], task["description"], task["tags"]) == (targets, "Go!", TAGS)
    listed = call("ListTasks", {"state": "IN_PROGRESS", "maxResults": 5})["tasks"]
    assert [entry["taskArn"] for entry in listed] == [made["taskArn"]]
    executions = call("ListExecutions", {"taskId": made["taskId"], "state": "QUEUED"})["executions"]
    assert [entry["managedDeviceId"] for entry in executions] == targets
    where = {"taskId": made["taskId"], "managedDeviceId": targets[1]}
    assert call("DescribeExecution", where)["executionId"] == "2"
    assert call("CancelTask", {"taskId": made["taskId"]})["taskId"] == made["taskId"]
    page = call("ListDevices", {"maxResults": 10})
    assert len(page["devices"]) == 10
    rest = call("ListDevices", {"maxResults": 10, "nextToken": page["nextToken"]})
    assert [entry["managedDeviceId"] for entry in rest["devices"]] == [fleet_id(10), fleet_id(11)]
    assert len(call("ListDevices", {"jobId": job_id(3)})["devices"]) == 1
    device = call("DescribeDevice", {"managedDeviceId": targets[0]})
    assert device["deviceState"] in {"UNLOCKED", "LOCKED", "UNLOCKING"}
    instances: list[dict[str, Any]] = []
    for index in range(DEVICES):
        device_id = fleet_id(index)
        found = call("ListDeviceResources", {"managedDeviceId": device_id})["resources"]
        if found:
            asked = {"managedDeviceId": device_id, "instanceIds": [entry["id"] for entry in found]}
            instances = call("DescribeDeviceEc2Instances", asked)["instances"]
            assert [entry["instance"]["instanceId"] for entry in instances] == asked["instanceIds"]
            break
    assert instances
    for arn, before in ((made["taskArn"], TAGS), (device["managedDeviceArn"], {})):
        call("TagResource", {"resourceArn": arn, "tags": {"owner": "dev", "wave": "1"}})
        assert call("ListTagsForResource", {"resourceArn": arn})["tags"] == {
            **before,
            "owner": "dev",
            "wave": "1",
        }
        call("UntagResource", {"resourceArn": arn, "tagKeys": ["owner", "path"]})
        assert call("ListTagsForResource", {"resourceArn": arn})["tags"] == {"wave": "1"}
