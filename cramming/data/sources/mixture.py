"""``data=mixture``: several configured sources as one corpus, in shares of the characters or one after the other.

A member is configured like ``data=`` itself, at ``data.sources.<name>``. What there is only one of in a corpus (the
tokenizer, the length, the layout, ...) is the mixture's: members do not have it, and their option files' own values of
it do not apply.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming import registry
from cramming.data.config import DataConfig
from cramming.data.sources.mixture_source import EXHAUSTED, Member, Mixture
from cramming.data.sources.source import Source
from cramming.errors import UserError
from cramming.progress import ProgressSink
from cramming.registry import register
from cramming.suggest import nearest

# Options every data config has and a member decides for itself; ``max_documents``: the first so many of that source.
_MEMBERS_OWN = ("kind", "name", "max_documents")
#: Options of the whole corpus.
WHOLE = tuple(one.name for one in fields(DataConfig) if one.name not in _MEMBERS_OWN)
_TOLERANCE = 1e-5  # of the sum of the shares: six digits each are enough


@register("data", "mixture")
@dataclass
class MixtureConfig(DataConfig):
    """Several sources."""

    kind: str = "mixture"
    name: str = "mixture"
    mix: Any = None  # {source: share of the characters}, [sources]: all of each in this order, or null: all sources
    sources: dict[str, Any] = field(default_factory=dict)  # by name, the kind and the own options of each
    exhausted: str = "stop"  # the first source that is used up ends it; repeat: it begins again until all were read

    def __post_init__(self) -> None:
        """Keep what the mix names, and of each source its own options.

        Raises:
            UserError: a source that is none.
        """
        if self.mix is None and self.sources:
            self.mix = [str(name) for name in self.sources]  # written down: the order is part of what is asked for
        named = self.mix if isinstance(self.mix, list | dict) else []
        self.sources = {
            name: _own_options(name, self.sources[name]) for name in map(str, named) if name in self.sources
        }

    @property
    def shares(self) -> dict[str, float] | None:
        """The share of each source, in the order of the mix; None where all of each is taken.

        Raises:
            UserError: ``mix`` is not understood, names what is not configured, or its shares are none.
        """
        for name in self._names:
            if name not in self.sources:
                raise UserError(
                    f"data.mix names {name!r}, which is not configured{nearest(name, self.sources)}; "
                    f"configure it: {how_to_configure(name)}"
                )
        if not isinstance(self.mix, dict) or all(share is None for share in self.mix.values()):
            return None
        for name, share in self.mix.items():
            number = isinstance(share, int | float) and not isinstance(share, bool)
            if not number or not math.isfinite(share) or share <= 0:
                raise UserError(
                    f"data.mix: {name}={share} is no share; give each source a number above 0, or leave it out"
                )
        total = math.fsum(self.mix.values())
        if abs(total - 1) > _TOLERANCE:
            normalised = ", ".join(f"{name}: {share / total:.6g}" for name, share in self.mix.items())
            raise UserError(
                f"data.mix: the shares add up to {total:g}, not 1; did you mean data.mix='{{{normalised}}}'?"
            )
        return {name: float(self.mix[name]) for name in self._names}

    @property
    def _names(self) -> list[str]:
        """The sources in the order of the mix."""
        if self.mix is None:
            return []
        names = [str(name) for name in self.mix] if isinstance(self.mix, list | dict) else []
        if not names or len(set(names)) < len(names):
            raise UserError(
                f"data.mix={self.mix} is no mixture; give shares, data.mix='{{wiki: 0.7, python_docs: 0.3}}', "
                "or each source once, all of one after the other, data.mix=[wiki,python_docs]"
            )
        return names

    def check(self) -> None:
        """See ``DataConfig.check``."""
        super().check()
        if self.exhausted not in EXHAUSTED:
            raise UserError(f"data.exhausted={self.exhausted} is not known{nearest(self.exhausted, EXHAUSTED)}")
        if not self._names:
            raise UserError("data=mixture needs data.mix='{<source>: <share>, ...}', such as '{wiki: 0.7, docs: 0.3}'")
        shares = self.shares
        if shares is None and self.exhausted == "repeat":
            raise UserError(
                "data.exhausted=repeat needs shares in data.mix; without them all of each source is read once"
            )
        for name, member in self.members().items():
            try:
                member.check()
            except UserError as error:
                raise _placed(error, name, member.kind) from error
            if type(member).source is DataConfig.source:
                raise UserError(
                    f"data.sources.{name}: {member.kind} has rows that are ready, no text; it cannot be mixed"
                )

    def members(self) -> dict[str, DataConfig]:
        """Each source's config, in the order of the mix."""
        return {name: _member(name, self.sources[name]) for name in self._names}

    def source(self, data_dir: Path, workers: int, progress: ProgressSink) -> Source:
        """See ``DataConfig.source``."""
        shares = self.shares
        opened = []
        for name, config in self.members().items():
            try:
                source = config.source(data_dir, workers, progress)
            except UserError as error:
                raise _placed(error, name, config.kind) from error
            opened.append(Member(name, source, shares[name] if shares else None, config.max_documents))
        return Mixture(opened, self.exhausted, progress)


def how_to_configure(name: str) -> str:
    """The words that make ``name`` a source."""
    return f"+data@data.sources.{name}=local data.sources.{name}.path=<file, folder or glob>"


def refuse_whole(name: str, option: str) -> None:
    """Refuse an option of the whole corpus that was set for a member.

    Raises:
        UserError: it is one.
    """
    if option in WHOLE:
        raise UserError(
            f"data.sources.{name}.{option}: a mixture has one {option} for all its sources: data.{option}=..."
        )


def _own_options(name: str, node: Any) -> dict[str, Any]:
    """The options of a source that are its own, complete, from what was given or composed for it.

    Raises:
        UserError: no source, an unknown option, or one of the whole.
    """
    path = f"data.sources.{name}"
    if not isinstance(node, Mapping):
        raise UserError(
            f"{path}={node} is no source; give {path}='{{kind: local, path: ...}}', or {how_to_configure(name)}"
        )
    if node.get("kind") in (None, "???"):
        raise UserError(f"{path} has no kind; there are: {', '.join(registry.kinds('data'))}")
    known = [one.name for one in fields(registry.lookup("data", str(node["kind"])))]
    for option in map(str, node):
        if option not in known:
            raise UserError(f"unknown option {path}.{option}{nearest(option, set(known) - set(WHOLE))}")
    if not set(WHOLE) <= set(node):  # written by hand: what comes from an option file is complete
        for option in map(str, node):
            refuse_whole(name, option)
    return _own(_member(name, {option: value for option, value in node.items() if option not in WHOLE}))


def _member(name: str, own: Mapping[str, Any]) -> DataConfig:
    """A source's config from its own options.

    Raises:
        UserError: a value of the wrong type.
    """
    try:
        schema = OmegaConf.structured(registry.lookup("data", str(own["kind"])))
        member = OmegaConf.to_object(OmegaConf.merge(schema, OmegaConf.create(dict(own))))
    except OmegaConfBaseException as error:
        where = f"data.sources.{name}.{error.full_key}" if error.full_key else f"data.sources.{name}"
        raise UserError(f"{where}: {str(error).splitlines()[0]}") from error
    except UserError as error:  # of a mixture in the mixture
        raise _placed(error, name, str(own["kind"])) from error
    assert isinstance(member, DataConfig)
    return member


def _own(member: DataConfig) -> dict[str, Any]:
    return {option: value for option, value in asdict(member).items() if option not in WHOLE}


def _placed(error: UserError, name: str, kind: str) -> UserError:
    """An error about ``data.<option>`` as one about the member's option; what it says of other sources stays."""
    own = "|".join(one.name for one in fields(registry.lookup("data", kind)) if one.name not in WHOLE)
    return UserError(re.sub(rf"(?<![\w./])data\.(?=(?:{own})\b)", f"data.sources.{name}.", str(error)))
