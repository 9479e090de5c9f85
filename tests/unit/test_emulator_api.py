"""Routes and statuses come from botocore's model."""

from __future__ import annotations

import pytest

from dispatcher.emulator.api import load_api

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
