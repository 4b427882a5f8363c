"""What the indexes of all formats have in common: JSON a stranger wrote, looked at before anything is done with it."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from cramming.data.shards.compression import parse_compression
from cramming.data.shards.hashes import check_algorithm
from cramming.data.shards.shard import Shard, ShardFile
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


def listed_shards(node: Mapping[str, Any], where: str) -> list[Shard]:
    """The shards of an index: ``{"samples": n, "raw_data": file, "zip_data": file or null, "compression": name}``.

    Raises:
        UserError: the index is damaged, or names files outside its folder.
    """
    shards: list[Shard] = []
    names: set[str] = set()
    for number, one in enumerate(field(node, "shards", list, where)):
        place = f"{where}: shard {number}"
        raw = shard_file(field(one, "raw_data", dict, place), place)
        file, compression = raw, None
        if one.get("zip_data") is not None:
            compression = field(one, "compression", str, place)
            parse_compression(compression, place)
            file = shard_file(one["zip_data"], place)
        if twice := names & {raw.name, file.name}:
            raise UserError(f"{place}: the file {min(twice)} is listed twice: the index is damaged")
        names |= {raw.name, file.name}
        first = shards[-1].first + shards[-1].samples if shards else 0
        shards.append(Shard(number, first, field(one, "samples", int, place), file, raw, compression))
    return shards


def content_facts(shards: Sequence[Shard]) -> list[object]:
    """What an index says of the samples themselves. Without checksums that is little: the sizes of all files."""
    return [[s.samples, s.raw.name, s.raw.size, dict(s.raw.hashes) or s.file.size] for s in shards]


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
