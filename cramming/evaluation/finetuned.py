"""A pretrained encoder with a head for one task.

Shape legend: E examples, R texts (R = E * choices), S positions, H hidden, K spans of a text, C outputs.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cramming.architectures.configs import ArchConfig
from cramming.architectures.encoder import Classifier
from cramming.architectures.hf import TransformersClassifier
from cramming.architectures.layers.dropout import exchange
from cramming.errors import UserError
from cramming.evaluation.batches import Inputs
from cramming.evaluation.config import Setting
from cramming.evaluation.task_heads import NoHead, SpanHead, WordHead, pooled_head
from cramming.evaluation.tasks.task import Task
from cramming.exchange.weights import Weights

DROPOUT = 0.1  # of BERT and most after it, in fine-tuning (https://arxiv.org/abs/1810.04805, appendix A.3)
_TYPES = ("embeddings.token_type.weight", "embeddings.token_type_embeddings.weight")  # ours, and transformers'
IGNORED = -100  # a word's label that is not judged
_POOLERS = {"first": "zero_index", "mean": "avg"}


@dataclass(frozen=True)
class Start:
    """What a job's model begins with.

    Attributes:
        weights: of the pretrained model; of its architecture and sizes alone if ``untrained``.
        untrained: nothing is taken from ``weights``: all of it is drawn from the job's initialization seed.
        parent: ``FineTuned.state_dict()`` of another task's final model: all of it but the last layer of the head goes
            over what ``weights`` says. None: the job begins with ``weights``.
    """

    weights: Weights
    untrained: bool = False
    parent: Mapping[str, Tensor] | None = None


class FineTuned(nn.Module):
    """An encoder of any family with a head for one task.

    Args:
        encoder: the family's classifier.
        task: what is decided.
        setting: how; of it, what the head reads.
        arch: the options that ``encoder`` was built from.
        dropout: of heads that are no family's.

    Attributes:
        head: a head that reads the encoder's states; None: the family's own classifier decides, so that the whole is
            what others call a sequence classifier, too.
        positions: the longest text it takes, in tokens.
    """

    def __init__(
        self,
        encoder: Classifier | TransformersClassifier,
        task: Task,
        setting: Setting,
        arch: ArchConfig,
        dropout: float = DROPOUT,
    ) -> None:
        super().__init__()
        self.encoder = encoder
        self.task, self.arch = task, arch
        self.positions = int(encoder.max_positions)
        self.spans = task.span_count if setting.spans == "pooled" and task.kind != "tokens" else 0
        self._types = _types_of(encoder) > 1
        self.head: SpanHead | WordHead | nn.Module | None = self._own_head(setting, dropout)
        exchange(self)

    @property
    def hidden(self) -> int:
        """H."""
        encoder = self.encoder
        if isinstance(encoder, TransformersClassifier):
            return int(encoder.network.config.hidden_size)
        return int(self.arch.hidden)  # type: ignore[attr-defined]

    @property
    def last_layer(self) -> str:
        """Dotted path of the head's last layer, whose rows are the task's outputs."""
        if isinstance(self.head, SpanHead):
            return "head.base.classifier"
        if self.head is not None:
            return "head.classifier"
        if not isinstance(self.encoder, TransformersClassifier):
            return "encoder.head.classifier"
        return f"encoder.network.{_last_linear(self.encoder.network, self.task.outputs)}"

    def forward(self, inputs: Inputs) -> Tensor:
        """Logits: (E, C); (E, choices) for a choice; (R, K, C) for the words of token classification."""
        types = inputs.types if self._types else None
        if self.head is None:
            logits: Tensor = self.encoder(inputs.tokens, inputs.mask, types)
        else:
            states = self.encoder.states(inputs.tokens, inputs.mask, types)
            if isinstance(self.head, WordHead):
                logits = self.head(states, inputs.spans)
            elif self.spans:
                logits = self.head(states, inputs.mask, inputs.spans)
            else:
                logits = self.head(states, inputs.mask)
        return logits.view(-1, self.task.choices) if self.task.kind == "choice" else logits

    def parameter_options(self) -> dict[str, dict[str, float]]:
        """Which parameters of several dimensions are decayed like norms; rates of pretraining have no say here."""
        ask: Any = getattr(self.encoder, "parameter_options", dict)
        return {f"encoder.{name}": {"norm": said["norm"]} for name, said in ask().items() if "norm" in said}

    def _own_head(self, setting: Setting, dropout: float) -> nn.Module | None:
        """The head where the family's does not do; the family's is then gone, or part of it."""
        encoder, labels = self.encoder, self.task.outputs
        if isinstance(encoder, Classifier):
            theirs = encoder.head
            if setting.pooler is not None:
                theirs.pool_by(_POOLERS[setting.pooler])
            if self.task.kind == "tokens":
                encoder.head = NoHead()  # type: ignore[assignment]
                return WordHead(self.hidden, labels, theirs.dropout.p)
            if self.spans:
                encoder.head = NoHead(theirs.pool_padding)  # type: ignore[assignment]
                return SpanHead(theirs, self.hidden, self.spans, labels)
            return None
        if self.task.kind != "tokens" and not self.spans and setting.pooler != "mean":
            return None  # theirs reads the first token, or whatever else their makers meant it to
        network: Any = encoder.network
        for name, child in list(network.named_children()):
            if child is not network.base_model:
                setattr(network, name, nn.Identity())
        if self.task.kind == "tokens":
            return WordHead(self.hidden, labels, dropout)
        base = pooled_head(self.hidden, labels, dropout, _POOLERS[setting.pooler or "first"])
        return SpanHead(base, self.hidden, self.spans, labels) if self.spans else base


def build(start: Start, task: Task, setting: Setting, seed: int) -> FineTuned:
    """The model a job begins with, in float32 on the CPU, in evaluation mode.

    Args:
        start: what it takes over.
        task: what is decided.
        setting: how.
        seed: of everything that is not taken over.

    Raises:
        UserError: weights of another architecture, or a parent whose model is of another form.
    """
    weights = start.weights.trained()
    arch = fitted(weights.arch, setting)
    if start.untrained and getattr(arch, "pretrained", False):
        arch = replace(arch, pretrained=False)  # type: ignore[call-arg]
    seq_length = length_for(weights, setting.max_length)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder: Any = arch.build(weights.vocab_size, seq_length, labels=task.outputs)
        model = FineTuned(encoder, task, setting, arch, arch.dropout)
    if not start.untrained:
        _take_encoder(model, weights)
    if start.parent is not None:
        _take_parent(model, start.parent)
    return model.eval()


def fitted(arch: ArchConfig, setting: Setting) -> ArchConfig:
    """The options an architecture is fine-tuned with: its dropout, and what its head reads.

    ``setting.dropout`` is that of embeddings, sublayers and head; attention's follows it where the family has some.
    Without it, what an architecture's makers fine-tune with: theirs if options give one; none beyond those options for
    ModernBERT and NeoBERT; of MosaicBERT's and M2's attention none; everywhere else 0.1.
    """
    given, changes = setting.dropout, dict[str, Any]()
    if given is not None:
        changes["dropout"] = given
        changes |= {key: None for key in _WITH_DROPOUT if hasattr(arch, key)}
    elif arch.kind != "modern":
        changes["dropout"] = arch.dropout or DROPOUT
    if arch.kind not in _ATTENTION_KEPT:
        changes["attention_dropout"] = (arch.attention_dropout or DROPOUT) if given is None else given
    elif given == 0:
        changes["attention_dropout"] = 0.0
    if setting.pooler is not None and hasattr(arch, "pool_all"):
        changes["pool_all"] = setting.pooler == "mean"
    head: Any = getattr(arch, "classification_head", None)
    if head is not None:
        if given is not None:
            head = replace(head, classifier_dropout=given)
        if setting.pooler is not None:
            head = replace(head, pooler=_POOLERS[setting.pooler])
        changes["classification_head"] = head
    return replace(arch, **changes)


# Dropouts of their own, which follow ``dropout`` where they are None.
_WITH_DROPOUT = ("embedding_dropout", "attention_output_dropout", "classifier_dropout")
_ATTENTION_KEPT = ("mosaic", "m2", "modern")


def length_for(weights: Weights, wanted: int) -> int:
    """The ``seq_length`` to build a model with for texts of ``wanted`` tokens: more than it was pretrained with where
    the architecture has no weights for each position, as rotary, sinusoidal and ALiBi positions have none."""
    if wanted <= weights.seq_length:
        return weights.seq_length
    try:
        with torch.device("meta"):
            longer = weights.arch.build(weights.vocab_size, wanted).state_dict()
    except UserError:
        return weights.seq_length
    same = all(name in longer and longer[name].shape == tensor.shape for name, tensor in weights.state.items())
    return wanted if same else weights.seq_length


def loss(task: Task, logits: Tensor, labels: Tensor) -> Tensor:
    """The sum of the losses of what is judged, (), float32; ``judged`` says of how much.

    Cross entropy; for a choice over an example's choices; squared error for a regression; binary cross entropy, its
    mean over classes, for several labels at once.
    """
    wide = logits.float()
    if task.kind == "regression":
        return F.mse_loss(wide.squeeze(1), labels.to(wide.dtype), reduction="sum")
    if task.kind == "multilabel":
        return F.binary_cross_entropy_with_logits(wide, labels.to(wide.dtype), reduction="sum") / wide.shape[1]
    return F.cross_entropy(wide.flatten(0, -2), labels.flatten(), ignore_index=IGNORED, reduction="sum")


def judged(task: Task, labels: Tensor) -> int:
    """How many decisions of a batch count: examples, or words that have a label."""
    return int((labels != IGNORED).sum()) if task.kind == "tokens" else len(labels)


def _take_encoder(model: FineTuned, weights: Weights) -> None:
    """Copy what the pretrained model and this one have in common."""
    ours, theirs = model.encoder.state_dict(), weights.outline().state_dict()
    for name in sorted({*theirs, *weights.state}):
        if _of_head(name):
            continue
        if name not in weights.state:
            raise UserError(f"{weights.title} lacks {name!r}")
        if name not in theirs:
            raise UserError(f"{weights.title}: {name!r} has no place in the model: it is of another architecture")
        found, wanted = tuple(weights.state[name].shape), tuple(ours.get(name, theirs[name]).shape)
        if found != wanted:
            raise UserError(f"{weights.title}: {name!r} has shape {found}, and the model needs {wanted}")
    shared = {name: tensor for name, tensor in weights.state.items() if name in ours and not _of_head(name)}
    if weights.one_type:
        # A second segment would be marked by what no pretraining has seen; so it begins as the first, which was.
        for name in (name for name in shared if name.endswith(_TYPES)):
            shared[name] = shared[name][:1].expand_as(shared[name])
    model.encoder.load_state_dict(shared, strict=False)


def _take_parent(model: FineTuned, parent: Mapping[str, Tensor]) -> None:
    """Copy another task's model but for the last layer of its head."""
    last = f"{model.last_layer}."
    ours = {name: t for name, t in model.state_dict().items() if not name.startswith(last)}
    theirs = {name: t for name, t in parent.items() if not name.startswith(last)}
    for name in sorted({*ours, *theirs}):
        if name not in ours or name not in theirs or ours[name].shape != theirs[name].shape:
            raise UserError(
                f"eval.per_task.{model.task.name}.start_from: the other task's model is of another form ({name}): give "
                "both the same pooler and spans"
            )
    model.load_state_dict(theirs, strict=False)


def _of_head(name: str) -> bool:
    return name.startswith("head.")


def _types_of(encoder: Classifier | TransformersClassifier) -> int:
    """Types of tokens that it tells apart."""
    if isinstance(encoder, TransformersClassifier):
        return int(getattr(encoder.network.config, "type_vocab_size", 0) or 0)
    table: Any = getattr(encoder.embeddings, "token_type", None)
    return 0 if table is None else int(table.num_embeddings)


def _last_linear(network: Any, outputs: int) -> str:
    """Path of the last layer of a transformers classifier."""
    inside = {id(module) for module in network.base_model.modules()}
    layers = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == outputs and id(module) not in inside
    ]
    assert layers, f"{type(network).__name__} has no linear layer of {outputs} outputs"
    return layers[-1]
