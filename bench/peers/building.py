"""Peers in other languages, built once for this user and kept as long as their sources stay the same."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "snow-dispatcher-bench"
BUILD_S = 1_200
"""How long a build may take: the Rust SDK's is some minutes."""

_TOOLS = {
    "js": ("node", [["npm", "install", "--silent", "--no-audit", "--no-fund"]], ["node", "peer.mjs"]),
    "go": ("go", [["go", "mod", "tidy"], ["go", "build", "-o", "peer", "."]], ["./peer"]),
    "rust": ("cargo", [["cargo", "build", "--release", "--quiet"]], ["target/release/peer"]),
}


class NotHere(Exception):
    """A peer cannot be had on this machine; the message says why."""


def built(language: str) -> list[str]:
    """Return the command of a peer, building it where that was not done. Raises `NotHere`."""
    tool, steps, command = _TOOLS[language]
    if shutil.which(tool) is None or shutil.which(steps[0][0]) is None:
        raise NotHere(f"{tool} is not installed")
    sources = sorted(path for path in (HERE / language).rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:12]
    folder = CACHE / f"{language}-{digest}"
    failed = folder / "FAILED"
    if failed.exists():
        raise NotHere(failed.read_text(encoding="utf-8"))
    if not (folder / "BUILT").exists():
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(HERE / language, folder)
        for step in steps:
            _run(step, folder)
        (folder / "BUILT").touch()
    first, *rest = command
    there = [str(folder / part) if part.endswith(".mjs") else part for part in rest]
    return [first if shutil.which(first) else str(folder / first), *there]


def _run(step: list[str], folder: Path) -> None:
    try:
        done = subprocess.run(step, cwd=folder, capture_output=True, text=True, timeout=BUILD_S, check=False)
    except subprocess.TimeoutExpired:
        raise NotHere(f"`{' '.join(step)}` took more than {BUILD_S} s") from None
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        why = f"`{' '.join(step)}` failed: {said[-1].strip()[:160] if said else 'without a word'}"
        (folder / "FAILED").write_text(why, encoding="utf-8")  # not tried again; remove the folder to
        raise NotHere(why)
