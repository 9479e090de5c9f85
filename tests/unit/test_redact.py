"""No secret is written down, and nothing that is shown acts."""

from __future__ import annotations

import json
import logging

import pytest

from dispatcher.cli.options import _Redacting
from dispatcher.redact import inert, inert_json, redacted


@pytest.mark.parametrize(
    "text",
    [
        "key AKIAIOSFODNN7EXAMPLE used",
        "ASIAIOSFODNN7EXAMPLE",
        "x-amz-security-token:CANARY\nhost:x",
        "X-Amz-Security-Token=CANARY&x=1",
        "Authorization: AWS4-HMAC-SHA256 Credential=CANARY/2026, SignedHeaders=host, Signature=CANARY",
        '{"aws_secret_access_key": "CANARY"}',
        "aws_session_token = CANARY",
        "X-Amz-Signature=CANARY",
        '{"SecretAccessKey": "CANARY", "SessionToken": "CANARY/+=="}',
        json.dumps({"message": 'said {"aws_secret_access_key": "CANARY", "accessToken":"CANARY"}'}),
        json.dumps({"message": "x-amz-security-token:CANARY\nhost:x"}),
        "proxy https://user:CANARY@proxy.example:3128 refused",
    ],
)
def test_secrets_are_blanked(text: str) -> None:
    """Access keys, session tokens, signatures, in headers, JSON and settings."""
    out = redacted(text) or ""
    assert "CANARY" not in out
    assert "IOSFODNN7" not in out


def test_plain_text_is_left_alone() -> None:
    """What holds no secret stays as it is; None stays None."""
    assert redacted("resource not found: smd-1") == "resource not found: smd-1"
    assert redacted(None) is None


@pytest.mark.parametrize("text", ["a\nb", "a\x1b[31mb", "a\rb", "a\u202eb", "a\x00b", "a\u2028b", "a\x9bb"])
def test_control_characters_are_escaped(text: str) -> None:
    """One id is one line, and no terminal obeys it."""
    out = inert(text)
    assert out.isprintable()
    assert "\\" in out


def test_ordinary_letters_of_any_script_stay() -> None:
    """Escaping is for what acts, not for what is foreign."""
    assert inert("smd-日本-é") == "smd-日本-é"


def test_what_is_blanked_in_json_leaves_it_json() -> None:
    """An event is one object, whatever a service quotes in it."""
    said = 'said {"aws_session_token": "CANARY"} \\ to https://me:CANARY@host'
    found = json.loads(redacted(json.dumps({"error_message": said})) or "")
    assert found == {"error_message": said.replace("me:CANARY", "[redacted]").replace("CANARY", "[redacted]")}


@pytest.mark.parametrize(
    "text", ["a\x9bb", "a\u202eb", "a\u2028b", "a\x7fb", "a\U000e0041b", "日本 é", "plain"]
)
def test_json_is_made_inert_without_another_meaning(text: str) -> None:
    """By JSON's own escapes, and line ends between rows stay."""
    rows = inert_json("\n".join([json.dumps([text], ensure_ascii=False)] * 2))
    assert [json.loads(row) for row in rows.split("\n")] == [[text], [text]]
    assert rows.replace("\n", "").isprintable()


def test_a_log_record_is_one_entry() -> None:
    """What a message or an exception says cannot pass for another line of the log."""
    try:
        raise ValueError("a\n2026-01-01 ERROR dispatcher: forged")
    except ValueError as error:
        cause = (type(error), error, error.__traceback__)
    record = logging.LogRecord("dispatcher", logging.ERROR, "", 0, "%s", ("a\nERROR forged\x1b[2J",), cause)
    first, *rest = _Redacting("%(levelname)s: %(message)s").format(record).split("\n")
    assert first == r"ERROR: a\nERROR forged\x1b[2J"
    assert rest
    assert all(line.startswith("    ") for line in rest)
