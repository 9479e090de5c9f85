"""Pages of what is listed, and the next tokens that lead from one to the next."""

from __future__ import annotations

import base64
import binascii
from itertools import islice
from typing import TYPE_CHECKING

from dispatcher.emulator.reply import Params, Reply, invalid

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

PAGE = 100
"""Items of a page without `maxResults`: as many as shape MaxResults allows."""

Item = tuple[int, "dict[str, object] | None"]
"""(position, what is listed): a next token names the position it goes on from. None where a filter
dropped the item after the page was cut: it takes up room and is not shown."""


def page(name: str, params: Params, items: Callable[[int], Iterator[Item]], first: int = 0) -> Reply:
    """Answer with one page of the items from the position that the next token names, else from `first`."""
    start = _position(name, params.get("nextToken"), first)
    if start is None:
        return invalid("nextToken is not one that this operation gave")
    size = params.get("maxResults") or PAGE
    found = list(islice(items(start), size + 1))
    body: dict[str, object] = {name: [item for _, item in found[:size] if item is not None]}
    if len(found) > size:
        body["nextToken"] = base64.b64encode(f"{name}:{found[size][0]}".encode()).decode()
    return Reply(200, body)


def _position(name: str, next_token: str | None, first: int) -> int | None:
    """Return the position a next token stands for, `first` without one, None for one that is not ours."""
    if next_token is None:
        return first
    try:
        found, _, position = base64.b64decode(next_token, validate=True).decode("ascii").partition(":")
    except (binascii.Error, UnicodeDecodeError):
        return None
    return int(position) if found == name and position.isdigit() and len(position) < 19 else None
