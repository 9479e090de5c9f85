"""Routes and statuses come from botocore's model."""

from __future__ import annotations

from typing import Any

import pytest
from botocore.loaders import Loader
from botocore.model import ServiceModel, Shape

from dispatcher.emulator.api import MODEL_NAME, load_api
from dispatcher.emulator.config import Config, Ending
from dispatcher.emulator.fleet import GeneratedFleet, fleet_id
from dispatcher.emulator.service import Service
from dispatcher.emulator.validation import compile_check

ARN = "arn:aws:snow-device-management:us-west-2:123456789012:task/st-1"


@pytest.mark.parametrize(
    ("method", "path", "name", "params"),
    [
        ("POST", "/task", "CreateTask", {}),
        ("GET", "/tasks", "ListTasks", {}),
        ("GET", "/tasks?maxResults=5&state=COMPLETED", "ListTasks", {"maxResults": 5, "state": "COMPLETED"}),
        ("GET", "/executions?taskId=st-1", "ListExecutions", {"taskId": "st-1"}),
        ("GET", "/managed-devices?jobId=&other=1", "ListDevices", {"jobId": ""}),
        ("POST", "/task/st-1", "DescribeTask", {"taskId": "st-1"}),
        ("POST", "/task/st-1/cancel", "CancelTask", {"taskId": "st-1"}),
        ("POST", "/task/a/execution/b", "DescribeExecution", {"taskId": "a", "managedDeviceId": "b"}),
        ("GET", "/tags/" + ARN.replace("/", "%2F"), "ListTagsForResource", {"resourceArn": ARN}),
        (
            "DELETE",
            "/tags/x?tagKeys=a&tagKeys=b",
            "UntagResource",
            {"resourceArn": "x", "tagKeys": ["a", "b"]},
        ),
    ],
)
def test_a_request_line_finds_its_operation(
    method: str, path: str, name: str, params: dict[str, object]
) -> None:
    """Method, labels and query string name one operation and fill its members."""
    route = load_api().route(method, path)
    assert route is not None
    assert (route[0].name, route[1]) == (name, params)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/task"), ("POST", "/"), ("POST", "/task/"), ("POST", "/elsewhere")]
)
def test_other_request_lines_find_nothing(method: str, path: str) -> None:
    """A wrong method, an empty label and an unknown path are no operation."""
    assert load_api().route(method, path) is None


def test_every_operation_of_the_model_can_be_routed() -> None:
    """All 13 operations have a route of their own."""
    api = load_api()
    for operation in api.operations.values():
        path = "/" + "/".join("x" if part.startswith("{") else part for part in operation.segments)
        route = api.route(operation.method, path)
        assert route is not None
        assert route[0] is operation
    assert len(api.operations) == 13


def test_statuses_are_the_models() -> None:
    """Each modelled error has the status that clients key on."""
    statuses = load_api().statuses
    assert statuses["ServiceQuotaExceededException"] == 402
    assert statuses["ThrottlingException"] == 429


# ------------------------------------------------------------------------------------ outputs

MODEL = Loader().load_service_model(MODEL_NAME, "service-2")
SERVICE_MODEL = ServiceModel(MODEL)
JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "long": (int,),
    "boolean": (bool,),
    "timestamp": (int, float),
    "list": (list,),
    "map": (dict,),
    "structure": (dict,),
}


def mismatches(shape: Shape | None, value: Any, path: str) -> list[str]:
    """Every way in which a JSON value is not the shape: members, types, lengths, patterns, enums."""
    if shape is None:
        return [] if value == {} else [f"{path} should be empty"]
    if not isinstance(value, JSON_TYPES[shape.type_name]):
        return [f"{path} is {value!r}, not a {shape.type_name}"]
    found: list[str] = []
    if shape.type_name == "structure":
        found += [f"{path}.{name} is not modelled" for name in value.keys() - shape.members.keys()]
        found += [f"{path}.{name} is missing" for name in set(shape.required_members) - value.keys()]
        for name in value.keys() & shape.members.keys():
            found += mismatches(shape.members[name], value[name], f"{path}.{name}")
    elif shape.type_name == "list":
        for item in value:
            found += mismatches(shape.member, item, f"{path}[]")
    elif shape.type_name == "map":
        for item in value.values():
            found += mismatches(shape.value, item, f"{path}.*")
    elif shape.type_name == "string":
        compile_check(MODEL["shapes"], shape.name)(value, path, found)
    return found


def answers() -> dict[str, list[Any]]:
    """What all operations answer at several moments of a busy service."""
    endings = {Ending.FAILED: 0.2, Ending.REJECTED: 0.2, Ending.TIMED_OUT: 0.2}
    service = Service(Config(fleet=GeneratedFleet(30), endings=endings, offline=0.1, locked=0.5))
    found: dict[str, list[Any]] = {}

    def call(operation: str, now_s: float, **params: Any) -> Any:
        reply = service.handle(operation, params, now_s)
        assert reply.status == 200, (operation, reply)
        found.setdefault(operation, []).append(reply.body)
        return reply.body

    for number in range(6):
        targets = [fleet_id(index) for index in range(number, number + 10)]
        command = {"reboot": {}} if number % 2 else {"unlock": {}}
        text = {"description": "Go!", "tags": {"a": ""}} if number % 3 else {}
        made = call("CreateTask", float(number), command=command, targets=targets, **text)
        if number == 4:
            call("CancelTask", float(number), taskId=made["taskId"])
        arn = made["taskArn"]
        call("TagResource", float(number), resourceArn=arn, tags={"b": "c"})
        call("UntagResource", float(number), resourceArn=arn, tagKeys=["a"])
        call("ListTagsForResource", float(number), resourceArn=arn)
    for now_s in (5.0, 8.0, 12.0, 40.0, 400.0):
        call("ListDevices", now_s, maxResults=7)
        for task in call("ListTasks", now_s, maxResults=5)["tasks"]:
            call("DescribeTask", now_s, taskId=task["taskId"])
            for entry in call("ListExecutions", now_s, taskId=task["taskId"], maxResults=9)["executions"]:
                name = {"taskId": task["taskId"], "managedDeviceId": entry["managedDeviceId"]}
                call("DescribeExecution", now_s, **name)
        for device in map(fleet_id, range(30)):
            call("DescribeDevice", now_s, managedDeviceId=device)
            there = call("ListDeviceResources", now_s, managedDeviceId=device)["resources"]
            call("ListDeviceResources", now_s, managedDeviceId=device, maxResults=1)
            ids = [entry["id"] for entry in there]
            call("DescribeDeviceEc2Instances", now_s, managedDeviceId=device, instanceIds=ids)
    return found


def test_every_answer_has_the_models_shape() -> None:
    """All 13 operations answer with modelled members, types and values, and leave out none that is due."""
    found = answers()
    assert found.keys() == load_api().operations.keys()
    for name, bodies in found.items():
        shape = SERVICE_MODEL.operation_model(name).output_shape
        assert not [text for body in bodies for text in mismatches(shape, body, name)]
        if shape is not None:  # each member of an output is answered somewhere
            assert {member for body in bodies for member in body} == shape.members.keys(), name
    states = {entry["state"] for body in found["ListExecutions"] for entry in body["executions"]}
    assert states == set(SERVICE_MODEL.shape_for("ExecutionState").enum)
    states = {body["state"] for body in found["DescribeTask"]}
    assert states == set(SERVICE_MODEL.shape_for("TaskState").enum)
    states = {body["deviceState"] for body in found["DescribeDevice"]}
    assert states == set(SERVICE_MODEL.shape_for("UnlockState").enum)


def test_the_check_of_shapes_can_fail() -> None:
    """A member too many, one of a wrong type and one out of its enum are each found."""
    shape = SERVICE_MODEL.operation_model("DescribeTask").output_shape
    wrong = {"taskID": "x", "createdAt": "now", "state": "FAILED", "targets": ["a"]}
    assert len(mismatches(shape, wrong, "it")) == 3
