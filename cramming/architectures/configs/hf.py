"""``arch=hf``: its options."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from cramming.architectures.configs.base import ArchConfig
from cramming.errors import UserError
from cramming.registry import register

if TYPE_CHECKING:
    from torch import nn


@register("arch", "hf")
@dataclass
class HfConfig(ArchConfig):
    """Any masked language model that transformers knows: https://huggingface.co/docs/transformers.

    Its modules run as they are, with fresh weights or published ones. Repositories' own code is never run.

    Raises:
        UserError: options that cannot be had together, or a folder without a config; ``build`` and ``layers``: an id,
            kind or option that transformers does not know; ``build``: sequences longer than its positions, or weights
            of another tokenizer.
    """

    FREE: ClassVar[tuple[str, ...]] = (*ArchConfig.FREE, "pretrained")

    kind: str = "hf"
    name: str = "hf"
    # A hub id, or a folder that ``save_pretrained`` wrote, whose config.json says what is built.
    model: Optional[str] = None  # noqa: UP045 (OmegaConf reads this form)
    model_type: str = "bert"  # where no model is named: one of this kind, of the library's default sizes
    config: Any = None  # keys of its config.json that are to be others, such as {hidden_size: 128}
    pretrained: bool = False  # begin with the weights of ``model``; they need data.tokenizer to be its own, too

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.config is not None and not isinstance(self.config, Mapping):
            raise UserError(f"arch.config={self.config} is no mapping: write 'arch.config={{hidden_size: 128}}'")
        if self.pretrained and self.model is None:
            raise UserError("arch.pretrained=true needs weights: give arch.model=, a hub id or a folder")
        if self.pretrained and self.config:
            raise UserError("arch.pretrained=true takes a model as it is: leave arch.config out, or pretrained")
        if self.model is not None:
            folder = Path(self.model).expanduser()
            meant = self.model.startswith((".", "/", "~")) or folder.exists()
            if meant and not (folder / "config.json").is_file():
                raise UserError(f"arch.model={self.model} is no folder with a config.json: give another, or an id")

    @property
    def layers(self) -> int:
        """L."""
        from cramming.architectures.hf_origin import transformers_config

        return int(getattr(transformers_config(self), "num_hidden_layers", 1))

    def shortened(self, layers: int) -> ArchConfig:
        raise UserError(f"{layers} of {self.layers} layers of arch=hf are not known to be a model of their own")

    def build(self, vocab_size: int, seq_length: int, labels: int | None = None) -> nn.Module:
        from cramming.architectures.hf_build import build

        return build(self, vocab_size, seq_length, labels)
