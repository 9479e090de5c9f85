"""Keep secrets out of what is written down, and control characters out of what is shown."""

from __future__ import annotations

import re
import unicodedata

_SECRETS = re.compile(
    r"(?P<key>\b(?:AKIA|ASIA)[0-9A-Z]{12,})"
    r"|(?<=://)(?P<user>[^/\s:@\"']+:[^/\s@\"']+)(?=@)"
    r"|(?P<head>(?:x-amz-security-token|x-amz-signature|authorization|(?:aws_)?(?:security|session)_?token"
    r"|(?:aws_)?secret_?access_?key|(?:access|refresh)_?token|client_?secret)"
    r"\\?[\"']?\s*[:=]\s*\\?[\"']?)"
    r"(?P<value>(?:AWS4-HMAC-SHA256\s+)?[^\s,;&\"'\\]+(?:,\s*(?:SignedHeaders|Signature)=[^\s,\"'\\]+)*)",
    re.IGNORECASE,
)


def redacted(text: str | None) -> str | None:
    """Blank out access keys, session tokens, signatures and passwords in URLs, also in text that is JSON.

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


def inert_json(text: str) -> str:
    """Do so to text that is JSON, by JSON's own escapes; line ends between values stay."""
    if text.isascii() and "\x7f" not in text:
        return text  # an encoder escapes the others itself
    return "".join(
        c
        if c == "\n" or (unicodedata.category(c)[0] != "C" and c not in "\u2028\u2029")
        else "".join(f"\\u{unit:04x}" for unit in _utf16(c))
        for c in text
    )


def _utf16(character: str) -> tuple[int, ...]:
    data = character.encode("utf-16-be", "surrogatepass")
    return tuple(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
