"""The one place where an answer becomes facts: every row of the table, and what could be mistaken."""

from __future__ import annotations

import botocore.session
import pytest

from dispatcher.model import Answer, Created, Kind, Pace
from dispatcher.transport.base import answer_for

TABLE = {
    Kind.ACCEPTED: ("yes", "ok"),
    Kind.UNREADABLE: ("unknown", "fault"),
    Kind.THROTTLED: ("no", "throttle"),
    Kind.BARE_THROTTLE: ("unknown", "throttle"),
    Kind.NO_REPLY: ("unknown", "fault"),
    Kind.UNREACHABLE: ("no", "fault"),
    Kind.POISON: ("no", "ok"),
    Kind.QUOTA: ("no", "quota"),
    Kind.MISMATCH: ("unknown", "ok"),
    Kind.ODD: ("unknown", "fault"),
    Kind.DENIED: ("no", "fault"),
    Kind.EXPIRED: ("no", "fault"),
    Kind.NO_CREDENTIALS: ("no", "fault"),
}


def kind(status: int, code: str | None = None, message: str | None = None, *targets: str) -> Kind:
    return answer_for(status, code, message, targets).kind


def test_every_kind_has_its_two_facts() -> None:
    """The table in code is the table in the design, row for row."""
    assert {kind: (kind.created.value, kind.pace.value) for kind in Kind} == TABLE
    assert Answer(kind=Kind.QUOTA).created is Created.NO
    assert Answer(kind=Kind.QUOTA).pace is Pace.QUOTA


@pytest.mark.parametrize(
    ("status", "code", "expected"),
    [
        (429, "ThrottlingException", Kind.THROTTLED),
        (400, "ThrottlingException", Kind.THROTTLED),
        (429, None, Kind.BARE_THROTTLE),
        (429, "Slow", Kind.BARE_THROTTLE),
        (503, None, Kind.BARE_THROTTLE),
        (503, "ServiceUnavailable", Kind.BARE_THROTTLE),
        (503, "ThrottlingException", Kind.BARE_THROTTLE),
        (500, "InternalServerException", Kind.NO_REPLY),
        (500, None, Kind.NO_REPLY),
        (502, None, Kind.NO_REPLY),
        (504, None, Kind.NO_REPLY),
        (599, "ValidationException", Kind.NO_REPLY),
        (400, "ValidationException", Kind.POISON),
        (404, "ResourceNotFoundException", Kind.POISON),
        (402, "ServiceQuotaExceededException", Kind.QUOTA),
        (403, "AccessDeniedException", Kind.DENIED),
        (200, None, Kind.UNREADABLE),
        (200, "ThrottlingException", Kind.UNREADABLE),
        (302, None, Kind.ODD),
        (307, None, Kind.ODD),
        (400, None, Kind.ODD),
        (402, None, Kind.ODD),
        (403, None, Kind.ODD),
        (404, None, Kind.ODD),
        (408, None, Kind.ODD),
        (413, "RequestEntityTooLarge", Kind.ODD),
        (418, "Teapot", Kind.ODD),
        (204, None, Kind.ODD),
    ],
)
def test_status_and_code_decide(status: int, code: str | None, expected: Kind) -> None:
    """A modelled code of a 4xx is the service's word; a bare status may be a proxy's."""
    assert kind(status, code) is expected
    assert kind(status, code, "") is expected
    assert kind(status, code, "something went wrong") is expected


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("InvalidClientTokenId", "The security token included in the request is invalid."),
        ("UnrecognizedClientException", "The security token included in the request is invalid."),
        ("InvalidSignatureException", "Signature expired: 20261123T000000Z is now earlier"),
        ("MissingAuthenticationTokenException", "Missing Authentication Token"),
        ("IncompleteSignatureException", None),
        ("RequestTimeTooSkewed", None),
        ("OptInRequired", None),
    ],
)
def test_bad_credentials_are_denied_though_they_speak_of_tokens(
    status: int, code: str, message: str | None
) -> None:
    """A session token is not a client token: the lane renews its credentials, the batch is not parked."""
    assert kind(status, code, message) is Kind.DENIED


@pytest.mark.parametrize("status", [400, 401, 403])
@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("ExpiredTokenException", "The security token included in the request is expired"),
        ("ExpiredToken", "The provided token has expired."),
        ("ExpiredToken", None),
    ],
)
def test_an_expired_session_token_is_told_from_a_refusal(status: int, code: str, message: str | None) -> None:
    """New credentials may come while the run waits; a permission that is missing stops it."""
    assert kind(status, code, message) is Kind.EXPIRED


@pytest.mark.parametrize(
    ("status", "code", "message"),
    [
        (400, "IdempotentParameterMismatch", None),
        (400, "IdempotentParameterMismatchException", "The request uses the same client token"),
        (400, "IdempotencyException", ""),
        (409, "ConflictException", "clientToken was used with different parameters"),
        (400, "ValidationException", "The client token has already been used with other parameters"),
        (400, "ValidationException", "ClientToken smd-1 is not unique"),
        (400, "ValidationException", "a request with this idempotency key exists"),
        (400, "ValidationException", "Token 2c26b4 belongs to another request"),
        (404, "ResourceNotFoundException", "client-token not found"),
        (400, None, "this token was used with different parameters"),
    ],
)
def test_a_reused_token_is_never_poison(status: int, code: str | None, message: str | None) -> None:
    """No service of this family has an own code for it, so its words count: the batch stays in doubt."""
    assert kind(status, code, message, "smd-1", "smd-2") is Kind.MISMATCH


@pytest.mark.parametrize("code", ["ValidationException", "ResourceNotFoundException"])
@pytest.mark.parametrize("device", ["smd-token-1", "token", "my-client-token", "idempotent-7", "a.token.b"])
def test_a_device_may_be_called_token(code: str, device: str) -> None:
    """An id that the message quotes says nothing of the client token."""
    message = f"1 validation error: managed device '{device}' does not exist"
    assert kind(400, code, message, "smd-1", device) is Kind.POISON


def test_a_throttle_or_quota_may_speak_of_tokens() -> None:
    """Buckets hold tokens too; the code says what it is."""
    assert kind(429, "ThrottlingException", "no token left in the bucket") is Kind.THROTTLED
    assert kind(402, "ServiceQuotaExceededException", "too many tokens, token limit") is Kind.QUOTA


@pytest.mark.parametrize("device", ["t", "o", "to", "e", "ken"])
def test_a_short_device_id_hides_no_reused_token(device: str) -> None:
    """Taking the ids out of the message must not take letters out of its words."""
    message = "the client token was used with other parameters"
    assert kind(400, "ValidationException", message, device, "smd-1") is Kind.MISMATCH


def test_every_error_that_the_model_names_is_known() -> None:
    """What botocore's model lists for CreateTask is classified by code, none of it as odd."""
    model = botocore.session.get_session().get_service_model("snow-device-management")
    expected = {
        "ServiceQuotaExceededException": Kind.QUOTA,
        "ThrottlingException": Kind.THROTTLED,
        "InternalServerException": Kind.NO_REPLY,
        "ResourceNotFoundException": Kind.POISON,
        "ValidationException": Kind.POISON,
        "AccessDeniedException": Kind.DENIED,
    }
    found = {}
    for shape in model.operation_model("CreateTask").error_shapes:
        found[shape.name] = kind(shape.metadata["error"]["httpStatusCode"], shape.name, "said")
    assert found == expected


def test_an_answer_keeps_its_evidence() -> None:
    """Code and message go to the receipt as they came; a bare status is named."""
    answer = answer_for(404, "ResourceNotFoundException", "no such device")
    assert (answer.code, answer.message, answer.task_id) == (
        "ResourceNotFoundException",
        "no such device",
        None,
    )
    assert answer_for(502, None, None).code == "HTTP 502"


def test_a_services_strings_are_fit_to_be_written_down() -> None:
    """Lone surrogates cannot be stored, and nothing of a service is kept without bound."""
    answer = answer_for(400, "Validation\ud800Exception", "bad \ud800" + "x" * 5_000)
    assert answer.code is not None
    assert answer.message is not None
    assert len(answer.message) <= 1_000
    (answer.code + answer.message).encode()
