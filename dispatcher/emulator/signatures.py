"""SigV4 as the service's front end checks it: f(request, credentials, now_s) → refusal or nothing.

Written from the published algorithm and independent of every client here, so that it can judge them.
Codes and wording are those of AWS's JSON services; each is a 403.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from dispatcher.emulator.api import MODEL_NAME
from dispatcher.emulator.reply import Reply
from dispatcher.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

MAX_SKEW_S = 300.0
"""How far a request's clock may be off; 5 minutes is what AWS's services but S3 allow."""

_ALGORITHM = "AWS4-HMAC-SHA256"
_STAMP = "%Y%m%dT%H%M%SZ"
_MUST_BE_SIGNED = ("host", "x-amz-date")
_is_date = re.compile("[0-9]{8}T[0-9]{6}Z").fullmatch


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """The one identity that the service knows. Raises UsageError for credentials that cannot be."""

    access_key: str
    secret_key: str
    session_token: str | None = None
    expires_at: float | None = None
    """Unix time at which the credentials expire; None means never."""

    def __post_init__(self) -> None:
        if not self.access_key or not self.secret_key:
            raise UsageError("verifying signatures needs an access key and a secret key")

    def __repr__(self) -> str:
        return f"Signer({self.access_key!r})"  # the secret stays out of every message

    def refusal(
        self, method: str, raw_path: str, headers: Mapping[str, str], body: bytes, now_s: float, region: str
    ) -> Reply | None:
        """Return what the front end answers to a request that is not this signer's, now and for `region`.

        `headers` are looked up in lower case.
        """
        parts = _authorization(headers.get("authorization", ""))
        stamp = headers.get("x-amz-date", "")
        if parts is None:
            return _missing(headers)
        key, _, scope = parts["Credential"].partition("/")
        names = parts["SignedHeaders"].split(";")
        if not _is_date(stamp) or any(name not in names for name in _MUST_BE_SIGNED):
            return _refuse("IncompleteSignatureException", "host and x-amz-date have to be signed")
        if key != self.access_key or headers.get("x-amz-security-token") != self.session_token:
            return _refuse(
                "UnrecognizedClientException", "The security token included in the request is invalid."
            )
        if self.expires_at is not None and now_s >= self.expires_at:
            return _refuse("ExpiredTokenException", "The security token included in the request is expired")
        wanted = f"{stamp[:8]}/{region}/{MODEL_NAME}/aws4_request"
        if scope != wanted:
            text = f"Credential should be scoped to {wanted}, not {scope[:200]}"
            return _refuse("InvalidSignatureException", text)
        skewed = _skewed(stamp, now_s)
        if skewed is not None:
            return skewed
        request = _canonical(method, raw_path, headers, names, body)
        if not hmac.compare_digest(self._sign(scope, stamp, request), parts["Signature"].encode()):
            text = (
                "The request signature we calculated does not match the signature you provided. "
                "Check your AWS Secret Access Key and signing method."
            )
            return _refuse("InvalidSignatureException", text)
        return None

    def _sign(self, scope: str, stamp: str, request: bytes) -> bytes:
        digest = hashlib.sha256(request).hexdigest()
        key = b"AWS4" + self.secret_key.encode()
        for part in scope.split("/"):
            key = hmac.digest(key, part.encode(), "sha256")
        text = f"{_ALGORITHM}\n{stamp}\n{scope}\n{digest}"
        return hmac.digest(key, text.encode(), "sha256").hex().encode()


def _refuse(code: str, message: str) -> Reply:
    return Reply(403, {"message": message}, code)


def _missing(headers: Mapping[str, str]) -> Reply:
    if "authorization" in headers:
        return _refuse("IncompleteSignatureException", "Authorization header is not AWS4-HMAC-SHA256's")
    return _refuse("MissingAuthenticationTokenException", "Missing Authentication Token")


def _authorization(header: str) -> dict[str, str] | None:
    """Return the three parts of the Authorization header, None where one is missing."""
    algorithm, _, rest = header.partition(" ")
    parts = dict(part.strip().partition("=")[::2] for part in rest.split(","))
    wanted = ("Credential", "SignedHeaders", "Signature")
    return parts if algorithm == _ALGORITHM and all(parts.get(name) for name in wanted) else None


def _skewed(stamp: str, now_s: float) -> Reply | None:
    try:
        signed = datetime.datetime.strptime(stamp, _STAMP).replace(tzinfo=datetime.UTC)
    except ValueError:
        return _refuse("IncompleteSignatureException", f"Date {stamp} is not a date")
    now = datetime.datetime.fromtimestamp(now_s, datetime.UTC)
    shown = now.strftime(_STAMP)
    low, high = (now + datetime.timedelta(seconds=MAX_SKEW_S * sign) for sign in (-1, 1))
    if signed < low:
        limit = f"{low.strftime(_STAMP)} ({shown} - 5 min.)"
        text = f"Signature expired: {stamp} is now earlier than {limit}"
        return _refuse("InvalidSignatureException", text)
    if signed > high:
        limit = f"{high.strftime(_STAMP)} ({shown} + 5 min.)"
        text = f"Signature not yet current: {stamp} is still later than {limit}"
        return _refuse("InvalidSignatureException", text)
    return None


def _canonical(
    method: str, raw_path: str, headers: Mapping[str, str], names: list[str], body: bytes
) -> bytes:
    path, _, query = raw_path.partition("?")
    pairs = (pair.partition("=")[::2] for pair in query.split("&") if pair)
    encode: Callable[[str], str] = lambda text: quote(unquote(text), safe="-_.~")  # noqa: E731
    lines = [
        method,
        quote(path, safe="/-_.~"),  # encoded once on the wire, once more here, as all services but S3 do
        "&".join(sorted(f"{encode(name)}={encode(value)}" for name, value in pairs)),
        *(f"{name}:{' '.join(headers.get(name, '').split())}" for name in names),
        "",
        ";".join(names),
        hashlib.sha256(body).hexdigest(),
    ]
    return "\n".join(lines).encode()
