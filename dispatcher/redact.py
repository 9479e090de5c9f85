"""Keep secrets out of what is written down, and control characters out of what is shown."""

from __future__ import annotations

import re
import unicodedata

_SECRETS = re.compile(
    r"(?P<key>\b(?:AKIA|ASIA)[0-9A-Z]{12,})"
    r"|(?P<head>(?:x-amz-security-token|authorization|aws_secret_access_key|aws_session_token)[\"']?\s*[:=]\s*[\"']?)"
    r"(?P<value>(?:AWS4-HMAC-SHA256\s+)?[^\s,;&\"']+(?:,\s*(?:SignedHeaders|Signature)=[^\s,]+)*)",
    re.IGNORECASE,
)


def redacted(text: str | None) -> str | None:
    """Blank out access keys, session tokens and signatures.

    A service may quote the whole request in a refusal: SignatureDoesNotMatch shows the canonical string
    with its security token.
    """
    if text is None:
        return None
    return _SECRETS.sub(lambda found: f"{found['head'] or ''}[redacted]", text)


def inert(text: str) -> str:
    """Escape whatever a terminal or a log reader would act on: control and format characters, line ends."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        c
        if unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029"
        else c.encode("unicode_escape").decode()
        for c in text
    )
