"""Fine-tuning that goes wrong: losses that are not finite, memory that does not suffice, splits without labels."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from tuned import SETTING, job, model, same, split, splits, task, unlabelled, weights

from cramming.errors import UserError
from cramming.evaluation import batches, finetuned, optimizing
from cramming.evaluation.batches import Inputs
from cramming.evaluation.encoded import Encoded
from cramming.evaluation.finetune import evaluate, run
from cramming.evaluation.finetuned import Start
from cramming.evaluation.updating import Updater


def broken(encoded: Encoded, examples: slice) -> Encoded:
    """With values of a regression that are not finite."""
    assert encoded.labels is not None
    labels = encoded.labels.copy()
    labels[examples] = np.inf
    return replace(encoded, labels=labels)


def test_steps_that_are_not_finite_are_left_out() -> None:
    asked = task("regression")
    made = model("bert_tiny", asked)
    updater = Updater(made, optimizing.optimizer(made, SETTING))
    before = copy.deepcopy(made.state_dict())
    bad, good = (batches.gather(e, np.arange(8)) for e in (broken(split(asked), slice(0, 1)), split(asked)))
    assert not updater.step(bad, 1.0).isfinite()
    assert same(before, made.state_dict())
    updater.step(good, 1.0)
    assert not same(before, made.state_dict())
    reference = model("bert_tiny", asked)
    torch.manual_seed(0)
    alone = Updater(reference, optimizing.optimizer(reference, SETTING))
    alone.step(bad, 1.0)
    torch.manual_seed(3)
    alone.step(good, 1.0)
    untouched = model("bert_tiny", asked)
    clean = Updater(untouched, optimizing.optimizer(untouched, SETTING))
    torch.manual_seed(3)
    clean.step(good, 1.0)
    assert same(reference.state_dict(), untouched.state_dict())  # nothing is left of it, in the optimizer either
    updater.check()


def test_too_many_of_them_end_the_job() -> None:
    asked = task("regression")
    data = splits(asked)
    data["train"] = broken(data["train"], slice(None))
    setting = replace(SETTING, epochs=20)
    with pytest.raises(UserError, match="not finite in more than 20 steps in a row"):
        run(job(asked, setting), asked, Start(weights("bert_tiny")), data)
    short = replace(SETTING, epochs=6)  # 18 steps
    assert run(job(asked, short), asked, Start(weights("bert_tiny")), data).steps == 18


def test_memory_that_does_not_suffice_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    asked, encoded = task("classification"), split(task("classification"))
    made = model("bert_tiny", asked)
    whole = evaluate(made, encoded)
    forward, sizes = finetuned.FineTuned.forward, list[int]()

    def limited(self: finetuned.FineTuned, inputs: Inputs) -> Tensor:
        sizes.append(len(inputs))
        if len(inputs) > limit:
            raise RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory")
        return forward(self, inputs)

    monkeypatch.setattr(finetuned.FineTuned, "forward", limited)
    limit = 5
    with pytest.raises(UserError, match=r"out of memory with 8 examples of \d+ tokens.*microbatch_size=4"):
        run(job(asked), asked, Start(weights("bert_tiny")), splits(asked))
    np.testing.assert_allclose(evaluate(made, encoded), whole, rtol=1e-4, atol=1e-5)
    assert max(sizes) > limit
    limit = 0
    with pytest.raises(UserError, match="one example"):
        evaluate(made, encoded)


@pytest.mark.parametrize("missing", ["train", "validation"])
def test_splits_without_labels_are_refused(missing: str) -> None:
    asked = task("classification")
    whole = splits(asked)
    without = {name: encoded for name, encoded in whole.items() if name != missing}
    for data in ({**whole, missing: unlabelled(split(asked))}, without):
        with pytest.raises(UserError, match=f"made has no labelled examples in its split '{missing}'"):
            run(job(asked), asked, Start(weights("bert_tiny")), data)
