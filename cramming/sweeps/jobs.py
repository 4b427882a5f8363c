"""The runs of a sweep: every combination of the values on its command line, each with a name of its own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_loader import ConfigLoader
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from cramming.cli import job_name
from cramming.config import PretrainConfig
from cramming.errors import UserError

SEARCH = "for a search there is python -m cramming.search"


@dataclass(frozen=True)
class Job:
    """One run of a sweep.

    Attributes:
        name: the run's.
        words: all that composes it, ``name=`` included.
        config: what they compose.
        refused: why they cannot be used; nothing is launched then.
    """

    name: str
    words: tuple[str, ...]
    config: PretrainConfig | None
    refused: str | None = None

    @property
    def run_dir(self) -> Path:
        """Its folder; only of a job that was not refused."""
        assert self.config is not None
        return Path(self.config.base_dir) / self.name

    @property
    def end_s(self) -> float:
        """What it will have spent in the end, in its clock's unit; 0 for a job that is refused."""
        if self.config is None:
            return 0.0
        return self.config.stop_at_s or self.config.budget_s


def expand(name: str, words: Sequence[str], loader: ConfigLoader, label: str = "") -> list[tuple[str, list[str]]]:
    """Every combination of the words' values: (name, words), as Hydra's own sweeper multiplies them.

    Args:
        name: the sweep's; ``name=`` among the words has the last say.
        words: in Hydra's grammar; of two with one key the later is taken.
        loader: what finds the options of a ``glob``.
        label: goes into the names, for one grid of several.

    Raises:
        UserError: values that are not listed, or two combinations whose names are the same.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides(list(words))
    last: dict[str, Override] = {}
    for override in parsed:
        last.pop(override.get_key_element(), None)
        last[override.get_key_element()] = override
    for key, override in last.items():
        if override.is_sweep_override() and not override.is_discrete_sweep():
            raise UserError(f"{override.input_line}: a sweep needs a list of values for {key}; {SEARCH}")
    swept = {key for key, override in last.items() if override.is_sweep_override()}
    found: dict[str, list[str]] = {}
    for combination in BasicSweeper.split_arguments(list(last.values()), None)[0]:
        values = {word.partition("=")[0]: word for word in combination}
        base = values.pop("name", f"name={name}").partition("=")[2].strip("'\"")
        own = sorted(word.lstrip("+") for key, word in values.items() if key in swept)
        named = job_name("-".join(filter(None, (base, label))), ",".join(own))
        if named in found:
            raise UserError(
                f"two jobs of this sweep would both be named {named}: {' '.join(found[named][:-1])} and "
                f"{' '.join(values.values())}; give values that differ in letters, digits or ._=+-"
            )
        found[named] = [*values.values(), f"name='{named}'"]
    return list(found.items())
