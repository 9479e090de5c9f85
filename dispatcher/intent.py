"""What the operator asks for now, in digests, held against what was planned or sent before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from dispatcher.checkpoint.base import TOKEN_VERSION
from dispatcher.errors import PlanMismatch
from dispatcher.manifest import Manifest, digest_of

if TYPE_CHECKING:
    from dispatcher.checkpoint.base import Plan
    from dispatcher.checkpoint.registry import Record
    from dispatcher.settings import Resolved


@dataclass(slots=True)
class Intent:
    """A manifest under its settings: never its limits, which may change between any two processes."""

    run: str
    manifest: Manifest
    region: str
    endpoint_url: str | None
    intent_digest: str
    selection_digest: str

    @classmethod
    def of(cls, manifest: Manifest, settings: Resolved, region: str) -> Intent:
        run = manifest.run_id(settings.run_key)
        intent = manifest.intent(settings.run_key) | {"region": region}
        selection = manifest.selection() | {"skip_bad_rows": settings.skip_bad_rows}
        return cls(run, manifest, region, settings.endpoint_url, digest_of(intent), digest_of(selection))

    def differs(self, plan: Plan, inventory_digest: str) -> bool:
        """Whether a stored plan was cut from something else than what is asked for now."""
        return (
            self.intent_digest,
            self.selection_digest,
            inventory_digest,
            self.endpoint_url,
        ) != (plan.intent_digest, plan.selection_digest, plan.inventory_digest, plan.endpoint_url)

    def check_same(self, stored: Plan | Record) -> None:
        """Raise `PlanMismatch` unless endpoint, region and intent are those of what was sent."""
        for what, now, then in (
            ("endpoint", self.endpoint_url or "AWS", stored.endpoint_url or "AWS"),
            ("region", self.region, stored.region),
        ):
            if now != then:
                raise PlanMismatch(
                    f"run {self.run} was sent to {what} {then}, not to {now}",
                    hint="give this one its own --run-key: what was sent there says nothing of here",
                )
        if stored.token_version != TOKEN_VERSION:
            raise PlanMismatch(
                f"run {self.run} was sent with client tokens of version {stored.token_version},"
                f" this program makes version {TOKEN_VERSION}",
                hint="use the version that planned it: other tokens would command devices again",
            )
        if self.intent_digest != stored.intent_digest:
            raise PlanMismatch(
                f"run {self.run} was sent with another command, description, tags, account or system_tags",
                hint="restore them to resume it, or give --run-key to begin a new run",
            )
