"""Knowledge distillation: learn the predictions of a trained model as well as the words themselves.

Hinton et al. 2015, "Distilling the Knowledge in a Neural Network" (https://arxiv.org/abs/1503.02531): the student's
softened predictions are drawn to the teacher's, KL(teacher || student) at temperature T, times T^2, so that its
gradients keep their size at any temperature (section 2). For masked language models as in DistilBERT (Sanh et al. 2019,
https://arxiv.org/abs/1910.01108), at the predicted positions, beside the cross entropy of the words; without that
paper's cosine loss of hidden states, which must be equally wide for it.

Costs a forward pass of the teacher for every sequence trained on, account ``teacher``, at the price of the teacher's
own architecture (``rst-teacher.json`` in the run's folder), and its weights in memory. ``free=[teacher]`` writes them
down without paying.

Shape legend: B sequences, P prediction slots, V vocabulary.
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch.nn.functional as F
from torch import Tensor

from cramming.batch import Batch
from cramming.errors import UserError
from cramming.method import Forward, Method
from cramming.registry import register

if TYPE_CHECKING:
    from cramming.engine import Engine
    from cramming.train import Run

TEACHER = "teacher"  # the model's name, and the account's


@register("method", "distillation")
@dataclass
class Distillation(Method):
    """alpha T^2 KL(teacher || student) + (1 - alpha) cross entropy, each a mean over the predicted tokens.

    Attributes:
        checkpoint: the teacher: a run, an exported or Hugging Face folder, a file of weights, or a hub id; of the run's
            own tokenizer. It is read again whenever the run goes on, and must be the same then.
        temperature: T, that predictions are softened by, the student's too.
        alpha: weight of the teacher; 0 asks it nothing. DistilBERT's is 5 / 7.

    Raises:
        UserError: an option outside its range, or no checkpoint.
    """

    checkpoint: str = ""
    temperature: float = 2.0
    alpha: float = 0.7

    accounts: ClassVar[tuple[str, ...]] = (TEACHER,)

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"method.distillation.alpha={self.alpha} is the teacher's weight: give 0 to 1, such as 0.7")
        if not 0 < self.temperature < math.inf:
            raise UserError(f"method.distillation.temperature={self.temperature} must be above 0 and finite, such as 2")
        if self.alpha and not self.checkpoint:
            raise UserError(
                "method=distillation needs a teacher: method.distillation.checkpoint=<a run, a folder of weights, or a "
                "hub id>"
            )
        self._engine: Engine | None = None
        self._words = 0  # token ids that are words: models may have rows to spare
        self._teacher = ""  # a hash of its weights

    def setup(self, run: "Run") -> None:
        """Read the teacher, and find out what it costs.

        Raises:
            UserError: there is no such checkpoint, or it cannot teach this run.
        """
        self._engine, self._words = run.engine, run.stream.store.tokenizer.vocab_size
        if self.alpha:
            self._teacher = self.add_teacher(run)

    def add_teacher(self, run: "Run") -> str:
        """Let the engine ask the teacher; returns a hash of its weights."""
        from cramming.exchange.opening import opened
        from cramming.pricing import add_model  # it knows everything a run is built of

        weights = opened(self.checkpoint, run.config.base_dir)
        theirs, ours = weights.tokenizer, run.stream.store.tokenizer
        given = f"method.distillation.checkpoint={self.checkpoint}"
        if theirs is None:
            raise UserError(f"{given} has no tokenizer beside it: nobody knows which words its predictions are of")
        if theirs.sha256 != ours.sha256:  # one that only has ids to spare will do
            known = range(ours.vocab_size)
            other = next((i for i in known if i >= theirs.vocab_size or theirs.token(i) != ours.token(i)), None)
            if other is not None:
                found = f"knows {theirs.token(other)!r} by it" if other < theirs.vocab_size else "has no such id"
                raise UserError(
                    f"{given} has another tokenizer than this run: {ours.token(other)!r} has the id {other} here, and "
                    f"the teacher {found}; give this run the teacher's with data.tokenizer=, or take a teacher of this"
                )
        if weights.fresh:
            raise UserError(
                f"{given} has no masked-language head ({', '.join(weights.fresh[:3])}): it predicts nothing"
            )
        add_model(run, TEACHER, weights)
        return str(weights.origin["weights_sha256"])

    def objective(self, forward: Forward, batch: Batch) -> Tensor:
        """The teacher is asked first, once for every microbatch; empty slots weigh nothing."""
        if not self.alpha:
            return super().objective(forward, batch)
        assert self._engine is not None, "setup"
        softened = self._engine.logits(batch, TEACHER, of=TEACHER)[..., : self._words].float() / self.temperature
        scores = forward(batch, logits=True).float()
        words = F.cross_entropy(scores.transpose(1, 2), batch.labels, reduction="none")  # (B, P)
        own = F.log_softmax(scores[..., : self._words] / self.temperature, dim=-1)
        apart = F.kl_div(own, F.log_softmax(softened, dim=-1), reduction="none", log_target=True).sum(-1)  # (B, P)
        losses = self.alpha * self.temperature**2 * apart + (1 - self.alpha) * words
        return (losses * batch.weights).sum() / batch.normalizer

    def about(self) -> dict[str, Any]:
        """Which weights taught."""
        return {"teacher_sha256": self._teacher} if self._teacher else {}

    def state_dict(self) -> dict[str, Any]:
        """Who teaches."""
        return {"teacher": self._teacher}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Check that the teacher is who it was.

        Raises:
            UserError: it has changed since.
        """
        if self._engine is not None and state["teacher"] != self._teacher:
            raise UserError(
                f"method.distillation.checkpoint={self.checkpoint} holds other weights than those that this run has "
                "learnt from: put them back, such as <run>@step=4000 for one that trained on; or resume=false"
            )
