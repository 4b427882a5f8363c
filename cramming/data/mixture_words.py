"""What ``data.mix=`` on the command line means to Hydra.

A name in the mix that is not configured there is an option of the group ``data``: it is mounted as a source, so that
single options of it can be set, and are checked, like those of ``data=`` itself.
"""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from hydra.errors import HydraException

from cramming.data.sources.mixture import how_to_configure, refuse_whole
from cramming.errors import UserError

_MIX, _SOURCES = "data.mix", "data.sources"


def expanded(words: Sequence[str]) -> list[str]:
    """``words`` with the ones that ``data.mix=`` stands for: ``data=mixture`` and the options it names as sources.

    Where ``data=`` names another mixture, that one's sources are the ones there are.

    Raises:
        UserError: an option of the whole corpus is set for a source, or a source is configured that is not mixed in.
    """
    overrides = [_parsed(word) for word in words]
    known = [one for one in overrides if one is not None]
    mixes = [one for one in known if one.key_or_group == _MIX]
    names = {str(name) for mix in mixes for value in _values(mix) if isinstance(value, list | dict) for name in value}
    written: dict[str, set[str]] = {}  # sources by name, with the options in which the command line writes them down
    for one in known:
        for name, options in _given(one):
            written.setdefault(name, set()).update(options)
    complete = {name for name, options in written.items() if "kind" in options}
    mounted = {source for one in known if one.key_or_group == "data" and (source := _source(one.package))}
    if mixes and (idle := sorted((mounted | {*written}) - names)):
        raise UserError(f"data.sources.{idle[0]} is not part of data.mix; give it a share there, or leave it out")
    chosen = [one.value() for one in known if one.key_or_group == "data" and one.package is None]
    added = []
    if mixes and chosen in ([], ["mixture"]):
        added = [_mounting(name) for name in sorted(names - mounted - complete)]
    if mixes and not chosen:
        added.insert(0, "data=mixture")
    # Hydra wants to be told that a source is new.
    new = {
        word
        for word, one in zip(words, overrides, strict=True)
        if one is not None
        and one.type is OverrideType.CHANGE
        and (one.key_or_group == _SOURCES or _source(one.key_or_group) in complete)
    }
    return [*added, *(f"++{word}" if word in new else word for word in words)]


def not_an_option(words: Sequence[str], option: str, known: Sequence[str]) -> str | None:
    """What to say where ``option`` does not exist in the group ``data`` and was mounted because the mix names it."""
    if _mounting(option) not in words:
        return None
    return (
        f"data.mix names {option!r}, which is neither configured nor an option of data ({', '.join(known)}); "
        f"configure it: {how_to_configure(option)}"
    )


def _mounting(name: str) -> str:
    return f"+data@{_SOURCES}.{name}={name}"


def _parsed(word: str) -> Override | None:
    """The override a word is; None for flags, and for what Hydra will refuse in its own words."""
    if "=" not in word or word.startswith("-"):
        return None
    try:
        return OverridesParser.create().parse_override(word)
    except HydraException:
        return None


def _values(override: Override) -> list[Any]:
    """What an override sets; of a sweep, everything in it."""
    return list(override.sweep_iterator()) if override.is_sweep_override() else [override.value()]


def _source(path: str | None) -> str | None:
    """The source that ``data.sources.<source>...`` is about."""
    prefix = f"{_SOURCES}."
    return path.removeprefix(prefix).split(".")[0] if path and path.startswith(prefix) else None


def _given(override: Override) -> list[tuple[str, list[str]]]:
    """Sources an override is about, with the options it writes down: ``data.sources.<source>={kind: ...}``.

    Raises:
        UserError: an option of the whole corpus.
    """
    key, value = override.key_or_group, None if override.is_sweep_override() else override.value()
    about: dict[str, Any] = {}
    if key == _SOURCES and isinstance(value, dict):
        about = {str(name): one for name, one in value.items()}
    elif (name := _source(key)) is not None:
        option = key.removeprefix(f"{_SOURCES}.{name}").lstrip(".").split(".")[0]
        if option:
            refuse_whole(name, option)
        about = {name: None if option else value}
    given = [(name, [str(option) for option in one] if isinstance(one, dict) else []) for name, one in about.items()]
    for name, options in given:
        for option in options:
            refuse_whole(name, option)
    return given
