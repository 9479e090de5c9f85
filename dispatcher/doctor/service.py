"""Verdicts on region, endpoint, credentials, identity, reads and clock. Pure."""

from __future__ import annotations

import datetime
from typing import TYPE_CHECKING

from dispatcher.doctor.base import Check, fail, ok, skip, warn
from dispatcher.model import Kind
from dispatcher.transport.base import answer_for
from dispatcher.transport.credentials import NoCredentials

if TYPE_CHECKING:
    from collections.abc import Sequence

    from dispatcher.transport.credentials import Found
    from dispatcher.transport.inspecting import Answered

SKEW_WARN_S = 60.0
SKEW_FAIL_S = 240.0
"""A signature is good for 300 s; the rest is for what the clocks drift during a run."""
FORBIDDEN = frozenset(
    {"AccessDeniedException", "AccessDenied", "UnauthorizedException", "UnauthorizedOperation"}
)
"""Codes that say *you may not*; other refusals of a caller say *I do not believe you*."""
ATTACH = "attach the policy that --policy prints"
_LOG_IN = "log in again, or name the right --profile; `aws sts get-caller-identity` tells the same"
_NEEDED_FOR = {
    "DescribeTask": "a replay of an older task would go unnoticed",
    "ListTasks": "what is in doubt could not be looked for",
}


def check_region(region: str | None, origin: str) -> Check:
    """Say which region holds, and where it is from."""
    if region is None:
        hint = "set `region` in the manifest, or give --region, or set AWS_REGION"
        return fail("region", "no region is set", hint)
    return ok("region", f"{region} ({origin})")


def check_endpoint(url: str | None, origin: str, ignored: Sequence[str]) -> Check:
    """Say where calls go, and what does not change that."""
    said = "AWS's own, by region" if url is None else f"{url} ({origin}), not AWS"
    if ignored:
        hint = "--endpoint-url or the manifest's endpoint_url says where to send, nothing else"
        return warn("endpoint", f"{said}; ignored: {', '.join(ignored)}", hint)
    return ok("endpoint", said)


def check_credentials(
    found: Found | NoCredentials | None, answers: Sequence[Answered], *, now_s: float
) -> Check:
    """Judge what the standard chain found, and whether the service took it."""
    name = "credentials"
    if isinstance(found, NoCredentials):
        return fail(name, found.message, found.hint or _LOG_IN)
    if found is None:
        return ok(name, "none are configured, and an endpoint on this host needs none")
    said = f"found by {found.method}"
    refused = next((one for one in answers if is_disbelief(one)), None)
    if refused is not None:
        return fail(name, f"{said}, refused: {refused.code}", _LOG_IN)
    if found.expires_at is not None:
        end = datetime.datetime.fromtimestamp(found.expires_at, datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        if found.expires_at <= now_s:
            return fail(name, f"{said}, expired at {end}", _LOG_IN)
        return ok(name, f"{said}, good until {end}, then renewed")
    if found.frozen.token:
        return ok(name, f"{said}: temporary; if they end, the run stops with 3 and is resumable")
    return ok(name, said)


def is_disbelief(answer: Answered) -> bool:
    """Whether the caller was not believed, which is something else than not being permitted."""
    if answer.status is None or answer.code is None or answer.code in FORBIDDEN:
        return False
    return answer_for(answer.status, answer.code, answer.message).kind in (Kind.DENIED, Kind.EXPIRED)


def check_identity(answer: Answered | None, wanted: Sequence[tuple[str | None, str]], *, why: str) -> Check:
    """Judge who STS says we are; `wanted` are accounts, as far as known, with who names them."""
    name = "identity"
    if answer is None:
        return skip(name, f"not asked: {why}")
    if not answer.succeeded:
        said = f"AWS does not say who you are: {words(answer)}"
        if is_disbelief(answer):
            return fail(name, said, _LOG_IN)
        return warn(name, said, "check that sts.REGION.amazonaws.com can be reached from here")
    account, arn = str(answer.body.get("Account")), str(answer.body.get("Arn"))
    for expected, source in wanted:
        if expected is not None and expected != account:
            hint = "use credentials of that account (--profile)"
            return fail(name, f"account {account}, but {source} says {expected}: {arn}", hint)
    return ok(name, f"account {account}, {arn}")


def check_reachability(where: str, answers: Sequence[Answered]) -> Check:
    """Judge whether the service, and nothing else, answers there."""
    name = "reachability"
    modelled = [one for one in answers if _is_modelled(one)]
    if modelled and len(modelled) == len(answers):
        quickest_s = min(one.elapsed_s for one in modelled)
        return ok(name, f"{where} answered in {quickest_s * 1_000:.0f} ms")
    strange = [one for one in answers if one not in modelled]
    if modelled:
        said = f"{where} answered {len(modelled)} of {len(answers)} calls; {words(strange[0])}"
        return warn(name, said, "a run retries such calls; if they are many, wait or look at the network")
    answered = [one for one in strange if one.status is not None]
    if answered:
        said = f"something answers at {where}, but not as the service does: {words(answered[0])}"
        return fail(name, said, "look for a proxy or a captive portal in between, or a wrong URL")
    hint = "check region, DNS, proxy and firewall" if where == "AWS" else "is it started, is the URL right?"
    return fail(name, f"{where} does not answer: {words(strange[0])}", hint)


def _is_modelled(answer: Answered) -> bool:
    """Whether the answer is of the service's own making: a success, or an error with a code of its own."""
    if answer.succeeded:
        return True
    code = answer.code or ""
    return code.isidentifier() and code != "Unknown" and 400 <= (answer.status or 0) < 500


def check_read(name: str, action: str, answer: Answered) -> Check:
    """Judge one read-only permission; a run goes on without, so its lack is a warning."""
    if answer.succeeded or answer.code == "ResourceNotFoundException":
        return ok(name, f"{action} is permitted")
    if answer.code in FORBIDDEN:
        return warn(name, f"{action} is denied ({answer.code}): {_NEEDED_FOR[action]}", ATTACH)
    return skip(name, f"{action}: not known, {'no answer' if answer.status is None else words(answer)}")


def check_devices(name: str, answer: Answered, *, is_aws: bool) -> Check:
    """Judge whether the region manages any device at all: a run does not ask, but an operator may."""
    if answer.code in FORBIDDEN:
        return skip(name, f"ListDevices is denied ({answer.code}); a run does not need it")
    if is_aws and answer.succeeded and not answer.body.get("devices"):
        return warn(name, "ListDevices shows none", "is this the fleet's region and account?")
    return check_read(name, "ListDevices", answer)


def check_clock(answers: Sequence[Answered]) -> Check:
    """Judge our clock by the answer that came fastest: it knows best."""
    dated = [(one.elapsed_s, one.skew_s) for one in answers if one.skew_s is not None]
    if not dated:
        return skip("clock", "no answer carried a date")
    _, skew_s = min(dated)
    said = f"{abs(skew_s):.0f} s {'behind' if skew_s > 0 else 'ahead of'} the service's"
    hint = "set this host's clock (chrony, ntpd): what it signs is refused from 300 s on"
    if abs(skew_s) > SKEW_FAIL_S:
        return fail("clock", said, hint)
    if abs(skew_s) > SKEW_WARN_S:
        return warn("clock", said, hint)
    return ok("clock", said if abs(skew_s) >= 2 else "agrees with the service's")


def words(answer: Answered) -> str:
    """Say in a few words what came back."""
    if answer.status is None:
        return answer.message or answer.code or "no answer"
    code = answer.code or ""
    return f"HTTP {answer.status} {code}" if code and not code.isdigit() else f"HTTP {answer.status}"
