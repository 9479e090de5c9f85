"""Opening a database so that every page carries a sum, and is held against it when it is read.

SQLite sums its WAL and not its pages: a bit that flips in a row of a closed file would be read as if it had
been written so. SQLite's own `cksumvfs` (https://sqlite.org/cksumvfs.html) keeps eight bytes at the end of
every page for a sum, and apsw's wheels bring it. Measured over 13 MB: writing a plan costs a tenth more CPU,
a commit nothing that can be told from noise, a check of all pages a quarter more (docs/adr/0026).

Where it is missing (an apsw built from source) a new file has no sums. A file that has them is then read and
not written: its pages would keep sums of what they no longer hold.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import apsw
import apsw.sqlite_extra

from dispatcher.checkpoint.files import DAMAGED_HINT
from dispatcher.errors import CheckpointCorrupt, CheckpointIo

if TYPE_CHECKING:
    from pathlib import Path

SUM_BYTES = 8
"""What `cksumvfs` wants reserved on a page; any other number, also 0, means no sums."""
_PLATFORM = "unix"
"""SQLite's own layer over the system's files; any other default is a test's, and stays in charge."""


def connect(
    path: Path | str, *, flags: int = apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
) -> apsw.Connection:
    """Open a database; a page with a wrong sum raises `apsw.IOError` (SQLITE_IOERR_DATA) when it is read."""
    return apsw.Connection(str(path), flags=flags, vfs=_sums() if apsw.vfs_names()[0] == _PLATFORM else None)


def has_sums(connection: apsw.Connection) -> bool:
    """Whether pages that this connection writes would get sums, if room is reserved for them."""
    return connection.execute("PRAGMA checksum_verification").get is not None


def check_writable(path: Path, connection: apsw.Connection) -> None:
    """Raise `CheckpointIo` where pages have sums that this program could not keep."""
    is_ours = apsw.vfs_names()[0] == _PLATFORM
    if is_ours and connection.reserve_bytes("main") == SUM_BYTES and not has_sums(connection):
        raise CheckpointIo(
            f"the pages of {path} have sums, which this build of apsw cannot keep",
            hint="install the apsw wheel of PyPI: pip install --force-reinstall --only-binary apsw apsw",
        )


def check_whole(path: Path, connection: apsw.Connection, *, read_only: bool) -> None:
    """Raise `CheckpointCorrupt` where the file ends within a page: SQLite reads zeros there, and no sum.

    A disk that filled may have cut a page off that the WAL still has whole; then it is written again here.
    """
    page_bytes = connection.execute("PRAGMA page_size").get
    if path.stat().st_size % page_bytes == 0:
        return
    wal = path.with_name(f"{path.name}-wal")
    if read_only and wal.exists() and wal.stat().st_size:
        return
    if not read_only:
        connection.execute("PRAGMA wal_checkpoint").fetchall()
    if path.stat().st_size % page_bytes:
        raise CheckpointCorrupt(f"{path} is damaged (it ends within a page)", hint=DAMAGED_HINT)


@functools.cache
def _sums() -> str | None:
    """Load `cksumvfs` once a process, and leave the default as it was; return its name, None without it."""
    if apsw.sqlite_extra.has("cksumvfs") is None:
        return None
    carrier = apsw.Connection(":memory:")
    try:
        apsw.sqlite_extra.load(carrier, "cksumvfs")
    finally:
        carrier.close()
        apsw.set_default_vfs(_PLATFORM)
    return "cksmvfs"
