"""SQL under names: `queries.sql` holds one statement per `-- name:` line."""

from __future__ import annotations

from importlib import resources


def load_queries() -> dict[str, str]:
    """Return the statements of queries.sql by name, comments stripped."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in _read("queries.sql").splitlines():
        if line.startswith("-- name:"):
            name = line.removeprefix("-- name:").strip()
            found[name] = []
        elif name and line.strip() and not line.lstrip().startswith("--"):
            found[name].append(line)
    return {key: "\n".join(lines) for key, lines in found.items()}


def load_schema() -> str:
    """Return the DDL of a new checkpoint."""
    return _read("schema.sql")


def _read(name: str) -> str:
    return resources.files("dispatcher.checkpoint").joinpath(name).read_text(encoding="utf-8")
