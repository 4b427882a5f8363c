"""``data=c4_subset_published``, ``data=published``: rows that others tokenized, imported as they were published.

There is no text and nothing to prepare: a run opens the store that ``assets/download_c4_subset.py`` made.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cramming.data.config import DataConfig
from cramming.data.published import C4_SUBSET, store_folder
from cramming.data.store import TokenStore
from cramming.errors import UserError
from cramming.registry import register
from cramming.suggest import nearest

if TYPE_CHECKING:
    from cramming.data.stream import Split

TOKENIZER = "published"
# They decided how the rows were made, elsewhere, once.
_SPLITS = ("ours", "study")
_FIXED = ("layout", "row_cls", "tokenizer", "tokenizer_kind", "normalize", "clean", "max_documents", "max_tokens")


@register("data", "published")
@dataclass
class PublishedConfig(DataConfig):
    """Token rows with their own tokenizer, in the order they were published in."""

    kind: str = "published"
    name: str = C4_SUBSET
    row_cls: bool = False
    tokenizer: str = TOKENIZER
    vocab_size: int = 32768
    max_rows: int | None = None  # the first so many, imported with the same max_rows
    heldout: str = "ours"  # which rows; study: those the earlier study held out, for what it published of the others

    def check(self) -> None:
        """See ``DataConfig.check``."""
        ours = type(self)()
        for key in _FIXED:
            if getattr(self, key) != getattr(ours, key):
                raise UserError(
                    f"data.{key} cannot be chosen: the rows of {self.name} are as they were published; leave it out, "
                    "or prepare text of your own with data=c4_subset or data=local"
                )
        super().check()
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", self.name):
            raise UserError(f"data.name={self.name!r} cannot be a set's name: letters, digits and ._- only")
        if self.heldout not in _SPLITS:
            raise UserError(f"data.heldout={self.heldout} is not known{nearest(self.heldout, _SPLITS)}")
        if self.max_rows is not None and self.max_rows < 1:
            raise UserError(f"data.max_rows={self.max_rows} leaves nothing; it takes 1 or more, or null for all")

    def split_of(self, store: TokenStore) -> "Split":
        """See ``DataConfig.split_of``."""
        if self.heldout == "ours":
            return super().split_of(store)
        from cramming.data.published_split import study_split  # needs torch

        return study_split(store, self.heldout_fraction)

    def ready_store(self, data_dir: Path) -> TokenStore:
        """See ``DataConfig.ready_store``."""
        folder = store_folder(data_dir, self.name, self.max_rows)
        if not folder.is_dir():
            options = "" if self.max_rows is None else f" max_rows={self.max_rows}"
            options += "" if self.name == C4_SUBSET else f" name={self.name} from=<folder or archive>"
            raise UserError(
                f"the published set {self.name} is not in {data_dir} yet: fetch it with `python "
                f"assets/download_c4_subset.py data_dir={data_dir}{options}`; offline, bring the archive and add "
                "from=<archive>, or train on data=python_docs or data=local data.path=<your text>"
            )
        store = TokenStore.open(folder)
        for key, found in (("seq_length", store.seq_length), ("vocab_size", store.tokenizer.vocab_size)):
            if getattr(self, key) != found:
                raise UserError(f"data.{key}={getattr(self, key)}, but {self.name} was published with {found}")
        return store
