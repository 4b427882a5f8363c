"""What the indexes of all formats have in common: JSON a stranger wrote, looked at before anything is done with it."""

import json
from collections.abc import Mapping
from typing import Any

from cramming.data.shards.hashes import check_algorithm
from cramming.data.shards.shard import ShardFile
from cramming.errors import UserError


def parse_object(text: str, where: str) -> dict[str, Any]:
    """The JSON object ``text`` is.

    Raises:
        UserError: it is none.
    """
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} is not JSON ({error}): it is damaged or no index of shards") from error
    if not isinstance(found, dict):
        raise UserError(f"{where} is no JSON object: it is no index of shards")
    return found


def field(node: Any, key: str, kind: type, where: str) -> Any:
    """``node[key]``, if it is a ``kind``; whole numbers are not negative.

    Raises:
        UserError: it is missing or something else.
    """
    value = node.get(key) if isinstance(node, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise UserError(f"{where}: {key} is {value!r}, not {_KINDS[kind]}: the index is damaged")
    return value


_KINDS = {int: "a whole number", str: "a text", list: "a list", dict: "an object"}


def shard_file(node: Any, where: str) -> ShardFile:
    """A file as ``{"basename": ..., "bytes": ..., "hashes": {...}}`` describes it.

    Raises:
        UserError: it does not, or the name leads out of the index's folder.
    """
    hashes = field(node, "hashes", dict, where)
    for algorithm, digest in hashes.items():
        check_algorithm(algorithm, where)
        if not isinstance(digest, str):
            raise UserError(f"{where}: the {algorithm} {digest!r} is no text: the index is damaged")
    name = check_inside(field(node, "basename", str, where), where)
    return ShardFile(name, field(node, "bytes", int, where), {key: value.lower() for key, value in hashes.items()})


def check_inside(name: str, where: str) -> str:
    """A file's name, if it lies in the folder of the index or in one below.

    Raises:
        UserError: it does not.
    """
    parts = name.split("/")
    if any(part in ("", ".", "..") or not part.isprintable() or "\\" in part or ":" in part for part in parts):
        raise UserError(
            f"{where}: the file name {name!r} leads out of the folder of the index; such an index is refused"
        )
    return name
