"""Verdicts on what is on this machine: inventory, checkpoint, folders, disk, locks, SQLite, open files."""

from __future__ import annotations

import os
import shlex
import stat
from typing import TYPE_CHECKING

from dispatcher.checkpoint import files
from dispatcher.checkpoint.lease import is_locked
from dispatcher.doctor.base import Check, fail, ok, warn
from dispatcher.errors import DispatcherError
from dispatcher.hints import command
from dispatcher.model import MAX_TARGETS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

    from dispatcher.doctor.stored import Stored
    from dispatcher.preview import Preview
    from dispatcher.settings import Resolved

SAFE_SQLITE = (3, 51, 3)
"""Before it, SQLite may lose a commit when a WAL is reset while two connections write."""
SPARE_FILES = 64
"""Descriptors beside the calls in flight: files of the run, the interpreter's, the SDK's, look-ups."""
LONG_WINDOW_S = 28_800.0
"""Sister services most often remember client tokens for 8 hours; nobody says how long this one does."""

# Measured with `SqliteCheckpoint` and `fleet_id`s of 20 characters, batches of ten, ARNs of 90 characters:
# 200,000 devices are 4.60 MB when planned (230 B a batch) and 7.53 MB when all is accepted (377 B a batch).
ID_BYTES = 22
"""One id in the plan."""
BATCH_BYTES = 165
"""The rest of a batch's row, its outcome with task id and ARN, and their share of pages and indexes."""
WAL_BYTES = 8 << 20
"""SQLite's -wal and -shm, registry and locks; the -wal was never over 4.2 MB."""


def run_bytes(devices: int) -> int:
    """Return what the finished checkpoint of `devices` takes on disk, with what stands beside it."""
    return WAL_BYTES + devices * ID_BYTES + -(-devices // MAX_TARGETS) * BATCH_BYTES


def check_manifest(found: Preview) -> Check:
    """Say what the inventory gives; a manifest that cannot be read ends the command before this."""
    notes = [
        f"{number} {what}"
        for number, what in (
            (found.duplicates, "repeated"),
            (found.bad_rows, "bad rows left out"),
            (found.filtered, "filtered out"),
        )
        if number
    ]
    counts = ((found.devices, "device"), (found.calls, "call"))
    devices, calls = (f"{number} {word}{'' if number == 1 else 's'}" for number, word in counts)
    said = f"{found.command} {devices} in {calls}"
    said += f" ({', '.join(notes)})" if notes else ""
    if found.bad_rows:
        first = found.bad_samples[0]
        return warn("manifest", said, f"see line {first.line} of the inventory: {first.reason}")
    return ok("manifest", said)


def check_limits(settings: Resolved) -> Check:
    """Judge limits against each other."""
    name, window_s, most = "limits", settings.token_window_s, settings.max_attempts
    if most * settings.attempt_timeout_s > window_s:
        said = f"{most} attempts of {settings.attempt_timeout_s:g} s outlast the token window, {window_s:g} s"
        return warn(name, f"{said}: some batches rest in doubt", "consider a lower --max-attempts")
    if window_s > LONG_WINDOW_S:
        said = f"a token window of {window_s:g} s is longer than services are known to remember"
        return warn(name, said, "a late resend may command a device twice: consider a lower --token-window")
    return ok(name, f"at most {settings.rate_per_s:g} calls/s, {settings.max_in_flight} in flight")


def check_checkpoint(stored: Stored) -> Check:
    """Judge what is stored of this run already, and whether a run could go on from it."""
    name, counts = "checkpoint", stored.counts
    if stored.problem is not None:
        return fail(name, stored.problem.message, stored.problem.hint)
    if stored.note is not None:
        return warn(name, stored.note)
    if counts is None:
        return ok(name, f"none yet; a run makes {stored.path}")
    if not stored.binds:
        return ok(name, f"{stored.path} holds a plan of which nothing was sent")
    said = f"{counts.accepted} of {counts.devices} devices accepted, {counts.in_doubt} in doubt"
    return ok(name, f"{stored.path}: {said}")


def check_folder(
    name: str,
    path: Path,
    refuse: Callable[[Path], None] = files.check_folder,
    *,
    allow_network: bool,
    network_of: Callable[[Path], str | None] = files.network_file_system,
) -> Check:
    """Judge a folder that holds state, or the one in which it would be made.

    `refuse` raises where a run would not use it; `network_of` tells the type of a network file system.
    """
    there = nearest(path)
    try:
        refuse(path if there.is_dir() else there)
    except DispatcherError as error:
        return fail(name, error.message, error.hint)
    if not os.access(there, os.W_OK | os.X_OK):
        what = f"{path} is not writable" if there == path else f"{path} cannot be made in {there}"
        hint = "make it writable for this user, or give another one (--checkpoint, DISPATCHER_STATE_DIR)"
        return fail(name, what, hint)
    network = network_of(path)
    if network is not None:
        said = f"{path} is on a network file system ({network}), where locks cannot be trusted"
        if allow_network:
            return warn(name, f"{said}; --allow-network-fs is given", "be sure that no other host uses it")
        return fail(name, said, "use a local folder, or --allow-network-fs if nobody else can reach it")
    if there != path:
        return ok(name, f"{path} is not there yet and can be made")
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        hint = f"chmod 700 {shlex.quote(str(path))}"
        return warn(name, f"others may look into {path} (mode {mode:04o})", hint)
    return ok(name, f"{path}, yours alone")


def nearest(path: Path) -> Path:
    """Return `path`, or the nearest folder above it that is there."""
    while not os.path.exists(path) and path != path.parent:  # noqa: PTH110  (never raises)
        path = path.parent
    return path


def check_disk(
    path: Path, needed: int, *, statvfs: Callable[[Path], os.statvfs_result] = os.statvfs
) -> Check:
    """Judge what this user may fill in the folder `path` against twice what the run takes: `needed` bytes."""
    there = nearest(path)
    space = statvfs(there)
    free = space.f_bavail * space.f_frsize
    said = f"{size(free)} free in {there}; the run takes about {size(needed)}"
    if free < needed:
        return fail("disk", said, "free some space, or put the checkpoint elsewhere (--checkpoint)")
    if free < 2 * needed:
        return warn("disk", f"{said}, and twice that should be free", "free some space before a long run")
    return ok("disk", said)


def size(count: float) -> str:
    """Render bytes as people say them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def check_lock(locks: Iterable[Path], run: str) -> Check:
    """Judge whether a process of this host is at the run already."""
    held = next((path for path in locks if is_locked(path)), None)
    if held is None:
        return ok("lock", "nobody else is at this run")
    try:
        process = held.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        process = ""
    who = f" (process {process})" if process.isdigit() else ""
    hint = f"let it finish: `{command('status', run)}` shows how far it is"
    return fail("lock", f"another runner is at this run{who}; a second one is refused", hint)


def check_sqlite(version: str) -> Check:
    """Judge the SQLite that apsw brings."""
    if tuple(int(part) for part in version.split(".") if part.isdigit()) < SAFE_SQLITE:
        said = f"SQLite {version} may lose a commit when two programs write at once"
        return fail("sqlite", said, "pip install --upgrade apsw")
    return ok("sqlite", f"SQLite {version}")


def check_open_files(soft: int | None, hard: int | None, *, max_in_flight: int) -> Check:
    """Judge the limits on open files (None is no limit): every call in flight may hold a connection."""
    needed = max_in_flight + SPARE_FILES
    said = f"{'no limit' if soft is None else f'limit {soft}'}, {needed} may be needed"
    if soft is None or soft >= needed:
        return ok("open_files", said)
    if hard is None or hard >= needed:
        return fail("open_files", said, f"before the run: ulimit -n {needed}")
    hint = f"lower --max-in-flight to {max(1, hard - SPARE_FILES)}: your hard limit is {hard}"
    return fail("open_files", said, hint)
