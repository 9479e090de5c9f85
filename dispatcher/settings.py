"""Settings: where each comes from, and what holds in the end.

defaults < settings file < manifest limits < `DISPATCHER_*` environment < flags. Nothing else in the
package reads the environment, but for what AWS's own tools read.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dispatcher.errors import UsageError, placed
from dispatcher.manifest import ENDPOINT, LIMITS, NAME, REGION, Manifest
from dispatcher.manifest_schema import (
    Problems,
    Section,
    flag,
    near_miss,
    not_empty,
    number,
    one_of,
    port_or_address,
    shown,
    text_rule,
)
from dispatcher.manifest_text import Written, read_tree
from dispatcher.model import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ENV_PREFIX = "DISPATCHER_"
TRANSPORTS = ("auto", "aiobotocore", "wire")
RATE_CONTROLS = ("learn", "aimd", "fixed")

_COUNT = number("a whole number of 0 or more", lambda n: n >= 0, whole=True)
_SCHEMA = Section(
    {
        "region": REGION,
        "profile": text_rule(not_empty),
        "endpoint_url": ENDPOINT,
        "state_dir": text_rule(not_empty),
        "checkpoint": text_rule(not_empty),
        "run_key": NAME,
        **LIMITS.rules,
        "limit": number("a whole number of at least 1", lambda n: n >= 1, whole=True),
        "transport": text_rule(one_of(TRANSPORTS)),
        "rate_control": text_rule(one_of(RATE_CONTROLS)),
        "reconcile": flag,
        "assume_absent": flag,
        "accept_removals": _COUNT,
        "skip_bad_rows": flag,
        "take_over": flag,
        "yes": flag,
        "allow_network_fs": flag,
        "metrics": port_or_address,
        "tracing": flag,
    }
)
_DEFAULTS: dict[str, Any] = {
    "rate_per_s": 10.0,
    "share": 1.0,
    "burst": 10,
    "max_in_flight": 64,
    "attempt_timeout_s": 10.0,
    "max_attempts": 8,
    "patience_s": 3600.0,
    "transport": "auto",
    "rate_control": "learn",
    "reconcile": True,
    "accept_removals": 0,
    "skip_bad_rows": False,
    "take_over": False,
    "yes": False,
    "allow_network_fs": False,
    "tracing": False,
}
MAX_NAME_BYTES = 255
"""What the file systems of this world allow."""
TOKEN_WINDOW_S = {Command.REBOOT: 600.0, Command.UNLOCK: 21_600.0}
"""A second reboot harms, a second unlock does not; no service of this family publishes less than 60 s,
and most publish 8 hours."""

ASSUME_ABSENT = {Command.REBOOT: False, Command.UNLOCK: True}
"""A reboot is sent at most once, an unlock at least once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an operator or a program asks for; None leaves a setting to the layers below."""

    region: str | None = None
    profile: str | None = None
    """A profile of the AWS configuration; None is the default chain."""
    endpoint_url: str | None = None
    state_dir: str | Path | None = None
    checkpoint: str | Path | None = None
    run_key: str | None = None
    rate_per_s: float | None = None
    """Ceiling in calls per second; the controller learns below it."""
    share: float | None = None
    """The part of what the service was found to allow that is used; the rest is left to others."""
    burst: int | None = None
    max_in_flight: int | None = None
    attempt_timeout_s: float | None = None
    max_attempts: int | None = None
    patience_s: float | None = None
    token_window_s: float | None = None
    limit: int | None = None
    """At most so many devices that were not sent before, then stop."""
    transport: str | None = None
    rate_control: str | None = None
    reconcile: bool | None = None
    """Whether `run` and `resume` ask the service about what they may not send again."""
    assume_absent: bool | None = None
    """Whether a task that the service does not list is taken for never created; None: by the command."""
    accept_removals: int | None = None
    skip_bad_rows: bool | None = None
    take_over: bool | None = None
    yes: bool | None = None
    allow_network_fs: bool | None = None
    metrics: str | int | None = None
    """Serve Prometheus metrics at `PORT` of this machine, or at `HOST:PORT`."""
    tracing: bool | None = None
    """Make OpenTelemetry spans."""
    below: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    """Values of a settings file with their origin: the manifest's limits go before them."""
    origins: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        given = {key: value for key in _SCHEMA.rules if (value := getattr(self, key)) is not None}
        plain = {key: str(value) if isinstance(value, Path) else value for key, value in given.items()}
        for key, value in check(plain, "settings").items():
            object.__setattr__(self, key, value)

    @classmethod
    def layered(
        cls,
        *,
        flags: Mapping[str, Any],
        environment: Mapping[str, str],
        config: str | Path | None = None,
    ) -> Settings:
        """Combine a settings file, the environment and flags.

        Raises `UsageError` with every problem of the three, each with its place. Texts of `flags` may stand
        for numbers where they are `Written`.
        """
        written = {
            name: Written(text)
            for variable, text in environment.items()
            if variable.startswith(ENV_PREFIX)
            and (name := variable[len(ENV_PREFIX) :].lower()) in _SCHEMA.rules
        }
        asked = {key: value for key, value in flags.items() if value is not None}
        readers: tuple[Callable[[], dict[str, Any]], ...] = (
            lambda: {} if config is None else read_config(config),
            lambda: check(written, None, spell=lambda key: ENV_PREFIX + key.upper()),
            lambda: check(asked, None, spell=flag_of),
        )
        found, wrong = [], []
        for read in readers:
            try:
                found.append(read())
            except UsageError as error:
                wrong.append(error)
        if wrong:
            raise UsageError.together(wrong)
        below, values, given = found
        origins = {key: f"environment {ENV_PREFIX}{key.upper()}" for key in values}
        origins.update(dict.fromkeys(given, "flag"))
        return cls(
            **{**values, **given}, below={k: (v, str(config)) for k, v in below.items()}, origins=origins
        )

    def resolve(
        self,
        manifest: Manifest | None = None,
        *,
        command: Command | None = None,
        stored: Mapping[str, Any] | None = None,
    ) -> Resolved:
        """Return what holds: every value, and where it came from.

        Args:
            manifest: the intent whose limits count.
            command: decides the token window where no manifest is read.
            stored: limits of the manifest that a stored plan remembers.
        """
        command = manifest.command if manifest is not None else command or Command.REBOOT
        values: dict[str, Any] = dict.fromkeys(_SCHEMA.rules)
        origins = dict.fromkeys(_SCHEMA.rules, "default")
        values.update(_DEFAULTS)
        values["token_window_s"] = TOKEN_WINDOW_S[command]
        values["assume_absent"] = ASSUME_ABSENT[command]
        layers = [self.below, _of_manifest(manifest) if manifest else _of_plan(stored or {})]
        layers.append(
            {
                key: (value, self.origins.get(key, "settings"))
                for key in _SCHEMA.rules
                if (value := getattr(self, key)) is not None
            }
        )
        for layer in layers:
            for key, (value, origin) in layer.items():
                values[key], origins[key] = value, origin
        values["state_dir"] = _place(values["state_dir"] or default_state_dir(), "state_dir", origins)
        if values["checkpoint"] is not None:
            values["checkpoint"] = _place(values["checkpoint"], "checkpoint", origins)
        return Resolved(**values, origins=origins)


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolved:
    """Every setting with its value; see `Settings` for meanings and `docs/settings.md` for all of them."""

    region: str | None
    profile: str | None
    endpoint_url: str | None
    state_dir: Path
    checkpoint: Path | None
    run_key: str | None
    rate_per_s: float
    share: float
    burst: int
    max_in_flight: int
    attempt_timeout_s: float
    max_attempts: int
    patience_s: float
    token_window_s: float
    limit: int | None
    transport: str
    rate_control: str
    reconcile: bool
    assume_absent: bool
    accept_removals: int
    skip_bad_rows: bool
    take_over: bool
    yes: bool
    allow_network_fs: bool
    metrics: str | None
    tracing: bool
    origins: Mapping[str, str]

    def checkpoint_of(self, run: str) -> Path:
        """Return where the checkpoint of `run` is by these settings."""
        return self.checkpoint if self.checkpoint is not None else self.state_dir / f"{run}.db"

    @property
    def resend_window_s(self) -> float:
        """The token window less a margin: a call may take as long as its deadline to reach the service."""
        return self.token_window_s - min(self.attempt_timeout_s, self.token_window_s / 4)

    def limits(self) -> dict[str, Any]:
        """Return the resolved limits, as plans print them."""
        return {key: getattr(self, key) for key in LIMITS.rules}

    def given_limits(self) -> dict[str, Any]:
        """Return the limits that somebody gave, for the plan to remember: `resume` needs no flags then."""
        return {key: value for key, value in self.limits().items() if self.origins[key] != "default"}


def check(
    values: Mapping[str, Any], where: str | None, *, spell: Callable[[str], str] = str
) -> dict[str, Any]:
    """Check settings of one source; raise `UsageError` that names the source and every bad key."""
    problems = Problems()
    found = _SCHEMA(dict(values), (), problems)
    if problems:
        wrong = [UsageError(placed(message, where, key=spell(".".join(key)))) for key, message in problems]
        raise UsageError.together(wrong)
    return {key: value for key, value in found.items() if value is not None}


def flag_of(key: str) -> str:
    """Return the flag of a setting: `rate_per_s` is `--rate`."""
    return "--" + key.removesuffix("_per_s").removesuffix("_s").replace("_", "-")


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return a warning for every `DISPATCHER_*` variable that is no setting."""
    known = {ENV_PREFIX + key.upper(): key for key in _SCHEMA.rules}
    return [
        f"environment {name} is not a setting{near_miss(name, known)}; it is ignored"
        for name in sorted(environment)
        if name.startswith(ENV_PREFIX) and name not in known
    ]


def read_config(path: str | Path) -> dict[str, Any]:
    """Read a TOML settings file. Raises `UsageError` naming the file, and the line or key."""
    tree = read_tree(Path(path), str(path), what="settings file", suffix=".toml", may_be_empty=True)
    return check(tree.root, str(path))


def default_state_dir() -> Path:
    """Return this platform's folder for a user's state."""
    import platformdirs  # here, since it costs start-up time and is rarely needed

    return Path(platformdirs.user_state_dir("snow-dispatcher", appauthor=False))


def _place(given: str | Path, key: str, origins: Mapping[str, str]) -> Path:
    """Return an absolute path. Raises `UsageError` for a place that no file or folder can have."""
    origin = origins[key]
    where = flag_of(key) if origin == "flag" else origin.removeprefix("environment ")
    where = where if origin == "flag" or where != origin else f"{origin}: {key}"
    try:
        path = Path(given).expanduser().absolute()
        is_there = next(place for place in (path, *path.parents) if os.path.lexists(place))
    except RuntimeError:
        raise UsageError(f"{where}: {shown(str(given))} begins in a home folder that is not known") from None
    except OSError as error:  # a relative path, and the working folder is gone
        raise UsageError(f"{where}: {shown(str(given))} cannot be found: {error.strerror}") from error
    if key != "state_dir" and not path.name:
        raise UsageError(f"{where}: {shown(str(given))} names no file", hint="name another place")
    above = is_there if key == "state_dir" else path.parent
    if os.path.lexists(above) and not os.path.isdir(above):  # noqa: PTH112 - Path's own raises without access
        raise UsageError(f"{where}: {above} is not a folder", hint="name another place")
    if max(len(os.fsencode(part)) for part in path.parts) > MAX_NAME_BYTES:
        raise UsageError(f"{where}: a file's name has at most {MAX_NAME_BYTES} bytes")
    return path


def _of_manifest(manifest: Manifest) -> dict[str, tuple[Any, str]]:
    origin = manifest.source or "manifest"
    values: dict[str, Any] = {key: getattr(manifest.limits, key) for key in LIMITS.rules}
    values["region"] = manifest.region
    values["endpoint_url"] = manifest.endpoint_url
    values["run_key"] = manifest.run_key
    return {key: (value, origin) for key, value in values.items() if value is not None}


def _of_plan(stored: Mapping[str, Any]) -> dict[str, tuple[Any, str]]:
    return {key: (value, "stored plan") for key, value in stored.items() if key in LIMITS.rules}
