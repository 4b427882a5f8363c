"""Hydra's and OmegaConf's errors as one line a person can act on."""

import re
from collections.abc import Callable
from dataclasses import dataclass

from hydra.errors import ConfigCompositionException, HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cramming.migration import replacement
from cramming.registry import GROUPS
from cramming.suggest import nearest


@dataclass(frozen=True)
class Tree:
    """One of the configuration trees a command line may be about.

    Attributes:
        compose: composes it from overrides.
        groups: what is chosen by name in it.
        earlier: what to write for a key or a group's option of an earlier system; None: none of them had it.
    """

    compose: Callable[[list[str]], DictConfig]
    groups: tuple[str, ...] = (*GROUPS, "wandb", "experiment")
    earlier: Callable[[str], str | None] = replacement


def explain(error: BaseException, words: list[str], of: Tree) -> str | None:
    """What went wrong while composing, with the nearest valid name; None if it is no error of the user's.

    Args:
        error: what Hydra raised.
        words: the command line, for finding the valid names.
        of: the tree that was composed.
    """
    text = str(error)
    if isinstance(error, MissingConfigException):
        return _missing(error, text, words, of)
    if isinstance(error, OverrideParseException):
        return f"{error.override!r} cannot be read as key=value ({text.splitlines()[1]}); quote special characters"
    if match := re.match(r"Could not override '([^']+)'", text):
        return unknown_key(match[1], words, of)
    if isinstance(error, ConfigCompositionException) and error.__cause__ is not None:
        if match := re.match(r"Error merging override (.+)", text):
            return f"{match[1]}: {str(error.__cause__).splitlines()[0]}"
        return explain(error.__cause__, words, of) or f"{text.splitlines()[0]}: {error.__cause__}".split("\n")[0]
    if match := re.match(r"Ambiguous value for argument '([^=]+)=([^']+)'", text):
        quoted = f"\"{match[1]}='{match[2]}'\""
        return f"{match[1]}={match[2]}: a comma means several values: add -m to run each, or quote it: {quoted}"
    if isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(line.strip() for line in text.splitlines()[:2])
    return None


def unknown_key(key: str, words: list[str], of: Tree) -> str:
    """An option that does not exist: its replacement if an earlier system had it, else the nearest that does."""
    bare = key.split("@", maxsplit=1)[0]
    if bare == "data.mix" and "data" in of.groups:
        return "data.mix belongs to data=mixture: leave data= out, or name a mixture"
    tree = _chosen(words, of)
    mixed = tree is not None and "sources" in tree.get("data", {}) and bare.startswith("data.sources.")
    if not mixed and (new := of.earlier(bare)) is not None:
        return f"option {bare} belongs to an earlier system; here it is: {new}"
    if bare in of.groups:
        return f"group {bare} cannot be set like that; give {bare}=<option>, one of those --help lists"
    if tree is None:
        return f"unknown option {bare}"
    keys = dotted_keys(tree)
    same_leaf = [known for known in keys if known.rsplit(".")[-1] == bare.rsplit(".")[-1]]
    depth = min((known.count(".") for known in same_leaf), default=0)
    same_leaf = [known for known in same_leaf if known.count(".") == depth]
    if len(same_leaf) == 1:
        return f"unknown option {bare}; did you mean {same_leaf[0]!r}?"
    return f"unknown option {bare}{_short(nearest(bare, [*keys, *of.groups]))}"


def _chosen(words: list[str], of: Tree) -> DictConfig | None:
    """The tree of the groups that were chosen, without single options; None where that does not compose either."""
    chosen = [w for w in words if w.split("=")[0] in of.groups and "," not in w.split("[")[0]]
    chosen += [w for w in words if w.startswith(("+data@data.sources.", "++data.sources."))]
    try:
        return of.compose(chosen)
    except HydraException:
        return None


def _missing(error: MissingConfigException, text: str, words: list[str], of: Tree) -> str:
    options = [option for option in error.options or () if not option.startswith("schema_")]
    group, _, option = str(error.missing_cfg_file or "").rpartition("/")
    if not group:
        return " ".join(text.split())
    if (new := of.earlier(f"{group}={option}")) is not None:
        return f"{group}={option} belongs to an earlier system; here it is: {new}"
    if group == "data":
        from cramming.data.mixture_words import not_an_option  # needs all data configs; --help does not

        if (said := not_an_option(words, option, options)) is not None:
            return said
    if (group, option) == ("hydra/launcher", "joblib"):
        return "hydra/launcher=joblib, for several jobs at once, is not installed: pip install 'budget-bert[sweep]'"
    return f"{group} has no option {option!r}{nearest(option, options)}"


def dotted_keys(tree: DictConfig, prefix: str = "") -> list[str]:
    """Every key of a tree, inner ones as ``a.b``."""
    keys = []
    for key in map(str, tree):
        path = f"{prefix}{key}"
        keys.append(path)
        unreadable = OmegaConf.is_missing(tree, key) or OmegaConf.is_interpolation(tree, key)
        if not unreadable and isinstance(tree[key], DictConfig):
            keys += dotted_keys(tree[key], f"{path}.")
    return keys


def _short(clause: str) -> str:
    """Listing every option of the tree would be a page: then --help is the better answer."""
    return clause if len(clause) < 120 else "; --help lists the ones people change most"
