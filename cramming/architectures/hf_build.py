"""``arch=hf``: from its options to a model, by looking at how the network is put together and by trying it."""

from typing import Any

import torch
from torch import Tensor

from cramming.architectures import hf_layers, hf_origin
from cramming.architectures.configs.hf import HfConfig
from cramming.architectures.hf import TransformersClassifier, TransformersEncoder, TransformersLanguageModel
from cramming.architectures.hf_head import FUSED, ROWS, Head, Inputs, accepted, decoders, examined
from cramming.errors import UserError

_TOKENS = 12  # of the sequences a network is tried on
_PADDING = 3  # at the end of the second of them


def build(arch: HfConfig, vocab_size: int, seq_length: int, labels: int | None) -> TransformersEncoder:
    """The model of ``arch=hf``, after finding out how its network is put together.

    Raises:
        UserError: see ``HfConfig``.
    """
    config = hf_origin.transformers_config(arch)
    if arch.pretrained:
        hf_origin.check_tokenizer(arch, config, vocab_size)
        vocab_size = config.vocab_size
    config = hf_origin.fitted(arch, config, vocab_size, labels)
    on_meta = torch.empty(0).device.type == "meta"  # sizes only, no weights
    if arch.pretrained and not on_meta:
        network = hf_origin.pretrained_network(str(arch.model), config, labels)
    else:
        said = f"arch.model={arch.model}" if arch.model else f"arch.model_type={arch.model_type}"
        network = hf_origin.fresh_network(config, labels, f"{said} with arch.config={arch.config or {}}")
    positions = longest(network, seq_length)
    if seq_length > positions:
        needed = config.max_position_embeddings + seq_length - positions
        raise UserError(
            f"data.seq_length={seq_length} is longer than the {positions} positions of {config.model_type!r}: shorten "
            f"the sequences, or give fresh weights more with arch.config={{max_position_embeddings: {needed}}}"
        )
    return wrapped(network.eval(), positions, labels is None)


def longest(network: Any, seq_length: int) -> int:
    """Positions of a network; as many as are needed where its config knows no limit.

    RoBERTa and its kin begin to count behind the padding's id, so that their tables have rows nobody uses.
    """
    limit = getattr(network.config, "max_position_embeddings", None)
    if not isinstance(limit, int) or limit < 1:
        return seq_length
    tables = (m for name, m in network.named_modules() if name.endswith(".position_embeddings"))
    counted_from = (table.padding_idx for table in tables if getattr(table, "padding_idx", None) is not None)
    return limit - max((padding + 1 for padding in counted_from), default=0)


def wrapped(network: Any, positions: int, language_model: bool) -> TransformersEncoder:
    """A network behind our contract; where it has weights, it is tried on a few tokens which short cuts it allows.

    Args:
        network: in evaluation mode.
        positions: the longest sequence, in tokens.
        language_model: it predicts tokens; else it is a classifier.

    Raises:
        UserError: it does not run on token ids alone.
    """
    device = next(network.parameters()).device
    trial = _Trial(network, min(_TOKENS, positions), device)
    found = hf_layers.find(network)
    stack = None if found is None else hf_layers.verified(network, found, trial.run)
    if device.type == "meta":  # not every network can be tried without values
        known = decoders(network)
        head = Head(FUSED, known[0]) if known else Head(ROWS)
        stack, leaks = stack or found, False
    else:
        leaks = trial.leaks()
        head = trial.head() if language_model else Head(ROWS)
    if language_model:
        return TransformersLanguageModel(network, positions, stack, head, leaks)
    return TransformersClassifier(network, positions, stack, leaks)


class _Trial:
    """Two short sequences, the second of them padded, in a network; what is drawn disturbs no random state."""

    def __init__(self, network: Any, length: int, device: torch.device) -> None:
        generator = torch.Generator().manual_seed(0)
        self.network = network
        self.lengths = torch.tensor([length, max(1, length - _PADDING)])
        self.mask = (torch.arange(length) < self.lengths[:, None]).long().to(device)
        vocabulary = network.config.vocab_size
        self.ids = torch.randint(vocabulary, (2, 2, length), generator=generator).to(device)
        if network.config.pad_token_id is not None and vocabulary > 1:  # padding in the midst of text means nothing
            self.ids = self.ids.where(self.ids != network.config.pad_token_id, (self.ids + 1) % vocabulary)

    def run(self) -> Tensor:
        """The encoder's output, (2, S, H)."""
        base = self.network.base_model
        states: Tensor = base(**accepted(base, self._inputs(self.ids[0])))[0]
        return states

    def head(self) -> Head:
        """How losses may be computed."""
        tokens = self.mask.flatten().nonzero().squeeze(1)[::2]
        labels = self.ids[1].flatten()[tokens]
        return examined(self.network, self._inputs(self.ids[0]), lambda grid: grid.flatten(0, 1)[tokens], labels)

    @torch.no_grad()
    def leaks(self) -> bool:
        """Whether what is in padding changes the tokens.

        Raises:
            UserError: the network does not run.
        """
        base, mask = self.network.base_model, self.mask.bool()
        try:
            with torch.random.fork_rng(devices=[]):
                one = self.run()
                other = base(**accepted(base, self._inputs(self.ids[0].where(mask, self.ids[1]))))[0]
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            kind, reason = self.network.config.model_type, " ".join(str(error).split())[:200]
            raise UserError(f"arch=hf of type {kind!r} does not run on token ids alone: {reason}") from error
        return not torch.allclose(one[mask], other[mask], rtol=1e-4, atol=1e-5)

    def _inputs(self, ids: Tensor) -> Inputs:
        return accepted(self.network, {"input_ids": ids, "attention_mask": self.mask})
