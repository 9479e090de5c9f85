"""Our signatures are those of the SDK's own signer, whatever is signed, by whom and when."""

from __future__ import annotations

import datetime

import botocore.auth
import pytest
from botocore.awsrequest import AWSRequest
from botocore.credentials import ReadOnlyCredentials
from hypothesis import given
from hypothesis import strategies as st

from dispatcher.transport.sigv4 import Signer

PRINTABLE = st.text(st.characters(min_codepoint=33, max_codepoint=0x2FFF, exclude_categories=["Z", "C"]))
KEYS = st.builds(
    ReadOnlyCredentials,
    PRINTABLE.filter(bool),
    PRINTABLE,
    st.none() | PRINTABLE | st.lists(PRINTABLE.filter(bool), min_size=2).map("  ".join),
)
INSTANTS = st.integers(0, int(datetime.datetime(9999, 12, 31, 23, 59, 59, tzinfo=datetime.UTC).timestamp()))
REGIONS = st.from_regex(r"[a-z]{2}(-[a-z]{1,9}){1,3}-[0-9]", fullmatch=True)
HOSTS = st.from_regex(r"[a-z0-9-]{1,20}(\.[a-z0-9-]{1,20}){0,3}(:[1-9][0-9]{0,3})?", fullmatch=True)
PATHS = st.sampled_from(["/task", "/base/task", "/a-b_c.d~e/task"])
BODIES = st.binary(max_size=2_000)


def by_the_sdk(host: str, path: str, region: str, key: ReadOnlyCredentials, at: int, body: bytes) -> bytes:
    """Sign with botocore at `at`; return the lines that it adds, in our order."""

    class At(botocore.auth.SigV4Auth):  # type: ignore[misc]
        def _modify_request_before_signing(self, request: AWSRequest) -> None:
            instant = datetime.datetime.fromtimestamp(at, datetime.UTC)
            request.context["timestamp"] = instant.strftime(botocore.auth.SIGV4_TIMESTAMP)
            super()._modify_request_before_signing(request)

    headers = {"Content-Type": "application/json", "Host": host}
    request = AWSRequest("POST", f"http://{host}{path}", headers=headers, data=body)
    At(key, "snow-device-management", region).add_auth(request)
    names = ["X-Amz-Date", "X-Amz-Security-Token", "Authorization"]
    return "".join(
        f"{name}: {request.headers[name]}\r\n" for name in names if name in request.headers
    ).encode()


def signer(host: str, path: str, region: str) -> Signer:
    headers = {"Content-Type": "application/json"}
    return Signer(host=host, path=path, headers=headers, region=region, service="snow-device-management")


@given(HOSTS, PATHS, REGIONS, KEYS, INSTANTS, BODIES)
def test_a_signature_is_the_sdks(
    host: str, path: str, region: str, key: ReadOnlyCredentials, at: int, body: bytes
) -> None:
    """All clocks, regions, hosts, tokens and session credentials, odd characters and bodies."""
    assert signer(host, path, region).sign(key, at, body) == by_the_sdk(host, path, region, key, at, body)


@given(st.lists(KEYS, min_size=1, max_size=3), INSTANTS, st.data())
def test_what_is_kept_between_calls_never_shows(
    keys: list[ReadOnlyCredentials], at: int, data: st.DataObject
) -> None:
    """Seconds, days and credentials may change between any two calls, back and forth too."""
    one = signer("h", "/task", "us-west-2")
    steps = st.tuples(st.sampled_from(keys), st.sampled_from([0, 0, 1, -1, 86_399, -86_400]), BODIES)
    for key, step, body in data.draw(st.lists(steps, max_size=8)):
        at = min(max(at + step, 0), 253_402_300_799)
        assert one.sign(key, at, body) == by_the_sdk("h", "/task", "us-west-2", key, at, body)


@pytest.mark.parametrize("broken", ["\r", "\n", "a\r\nX-Evil: 1", "\0"])
def test_credentials_cannot_smuggle_a_header(broken: str) -> None:
    """A line end in a key or token is refused, and leaves nothing of it behind."""
    one = signer("h", "/task", "us-west-2")
    good = ReadOnlyCredentials("AK", "SK", "T")
    first = one.sign(good, 1_000, b"x")
    for bad in (ReadOnlyCredentials("AK" + broken, "SK", "T"), ReadOnlyCredentials("AK", "SK", broken + "T")):
        for _ in range(2):
            with pytest.raises(ValueError, match="line end"):
                one.sign(bad, 1_000, b"x")
    assert one.sign(good, 1_000, b"x") == first
