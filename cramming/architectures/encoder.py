"""What every encoder of this package is: embeddings, blocks of which some are active, and a way to run them.

Shape legend: B sequences, S positions, P predicted, H hidden, L layers, V vocabulary, T tokens after unpadding.
"""

from collections.abc import Iterable

from torch import Tensor, nn

from cramming.architectures.layers.attention import SelfAttention, resolve_form
from cramming.architectures.layers.unpadding import Layout, Queries
from cramming.batch import Batch
from cramming.model import Model


class Encoder(Model):
    """Embeddings and L blocks. Any ascending subset of the blocks may be active; the others stay out of the graph.

    ``embeddings(inputs, layout, token_types)`` gives (T, H) and the word matrix for a tied decoder;
    ``block(x, layout, queries)`` maps (T, H) to (T, H), or to (N, H) at the slots in use of ``queries``. A subclass
    sets ``head``.
    """

    head: nn.Module

    def __init__(self, embeddings: nn.Module, blocks: Iterable[nn.Module], vocab_size: int, max_positions: int) -> None:
        super().__init__()
        self.embeddings = embeddings
        self.blocks = nn.ModuleList(blocks)
        self.vocab_size, self.max_positions = vocab_size, max_positions
        self.active_layers = tuple(range(len(self.blocks)))

    @property
    def active_layers(self) -> tuple[int, ...]:
        """Indices of the blocks that run, ascending."""
        return self._active

    @active_layers.setter
    def active_layers(self, layers: Iterable[int]) -> None:
        chosen = tuple(layers)
        if list(chosen) != sorted(set(chosen)) or not set(chosen) <= set(range(self.layers)):
            raise ValueError(f"active_layers={chosen} is not an ascending subset of 0..{self.layers - 1}")
        self._active = chosen

    @property
    def attention(self) -> str:
        """How attention is computed: ``auto``, ``math`` or ``sdpa``; setting it sets it in every block."""
        return self._attention[0].form

    @attention.setter
    def attention(self, form: str) -> None:
        resolve_form(form, next(self.parameters()).device, self.max_positions)
        for module in self._attention:
            module.form = form

    def fast_paths(self, length: int | None = None) -> dict[str, str]:
        """What was chosen for speed on this device, for sequences of ``length`` tokens (default: the longest)."""
        device = next(self.parameters()).device
        form = resolve_form(self.attention, device, length or self.max_positions)
        return {"attention": form, "vocabulary": "predicted positions only", "last_layer": "predicted positions only"}

    def hidden(self, batch: Batch) -> Tensor:
        """Final hidden states, zero at padding: -> (B, S, H)."""
        layout = Layout.of(batch.inputs, lengths=batch.lengths)
        return layout.pad(self.encode(batch.inputs, layout)[0])

    def encode(
        self, inputs: Tensor, layout: Layout, token_types: Tensor | None = None, queries: Queries | None = None
    ) -> tuple[Tensor, Tensor]:
        """Hidden states of all tokens or of ``queries``, and the word matrix: (B, S) -> (T, H) or (N, H), (V, H)."""
        x, decoder = self.embeddings(inputs, layout, token_types)
        for place, layer in enumerate(self.active_layers, start=1):
            last = place == len(self.active_layers)
            x = self.blocks[layer](x, layout, queries if last else None)
        if queries is not None and not self.active_layers:
            x = queries.select(x)
        return x, decoder

    @property
    def _attention(self) -> list[SelfAttention]:
        return [module for module in self.modules() if isinstance(module, SelfAttention)]
