"""No secret is written down, and nothing that is shown acts."""

from __future__ import annotations

import pytest

from dispatcher.redact import inert, redacted


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
