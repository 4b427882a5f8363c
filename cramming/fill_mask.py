"""``python -m cramming.fill_mask name=x "Paris is the [MASK] of France."``: the five likeliest words for each mask."""

import sys
from dataclasses import dataclass

import numpy as np
import torch

from cramming import resolve
from cramming.batch import Batch
from cramming.cli import load_schemas, parse, run_command
from cramming.data.tokenizer import Tokenizer
from cramming.errors import UserError
from cramming.evaluation.trained import Selection, selected
from cramming.kernels import choice
from cramming.model import Model

_USAGE = """\
Fill the masks of a sentence with a trained model's likeliest words.

  python -m cramming.fill_mask name=first "Paris is the [MASK] of France."
  python -m cramming.fill_mask checkpoint=exported/first "Paris is the [MASK] of France."

Options: name, base_dir=outputs, checkpoint (a run's, a folder, a file or a hub id), top=5,
         weights=averaged (those that a run's method lends for evaluation, if it does; or last)"""


@dataclass
class Options(Selection):
    """What can be set."""

    top: int = 5


@torch.no_grad()
def fill(model: Model, tokenizer: Tokenizer, text: str, top: int = 5) -> list[list[tuple[str, float]]]:
    """The likeliest tokens for each ``[MASK]`` of a text.

    Args:
        model: a masked language model, in evaluation mode.
        tokenizer: its tokenizer.
        text: with at least one ``[MASK]`` (or the tokenizer's own mask token).
        top: how many for each mask.

    Returns:
        For each mask in order, ``top`` pairs of token and probability, likeliest first.

    Raises:
        UserError: no mask in the text, or more tokens than the model has positions.
    """
    parts = text.replace("[MASK]", tokenizer.token(tokenizer.mask_id)).split(tokenizer.token(tokenizer.mask_id))
    if len(parts) < 2:
        raise UserError(
            f"there is no {tokenizer.token(tokenizer.mask_id)} in {text!r}: write one where a word is missing"
        )
    # A mask stands for a word, and in front of one a space is part of it, where it is part of a token at all.
    parts = [*(part.rstrip() for part in parts[:-1]), parts[-1]]
    pieces = [np.asarray(piece, dtype=np.int64) for piece in tokenizer.encode_batch(parts)]
    ids = [tokenizer.cls_id]
    for number, piece in enumerate(pieces):
        ids += [*([tokenizer.mask_id] if number else []), *piece.tolist()]
    ids.append(tokenizer.sep_id)
    longest = int(model.max_positions)
    if len(ids) > longest:
        raise UserError(f"the text has {len(ids)} tokens; this model takes {longest}: shorten it")
    device = next(model.parameters()).device
    inputs = torch.tensor([ids], device=device)
    positions = (inputs == tokenizer.mask_id).nonzero()[:, 1][None]
    one = torch.zeros(1, dtype=torch.int64, device=device)
    weights = torch.ones_like(positions, dtype=torch.float32)
    batch = Batch(one, one, inputs, positions, torch.zeros_like(positions), weights, None, weights.sum())
    scores = model(batch, logits=True)[0, :, : tokenizer.vocab_size]  # rows to spare have no word
    probabilities = scores.float().softmax(-1)
    best = probabilities.topk(min(top, probabilities.shape[-1]), dim=-1)
    return [
        [(tokenizer.token(int(token)), float(p)) for p, token in zip(row_p, row_t, strict=True)]
        for row_p, row_t in zip(best.values, best.indices, strict=True)
    ]


def command(argv: list[str]) -> None:
    """Load a run and fill the masks of each text given.

    Raises:
        UserError: no text, no mask, no such run.
    """
    options, texts = parse(argv, Options, _USAGE)
    if not texts:
        raise UserError('give a text with a mask, such as "Paris is the [MASK] of France."')
    if options.top < 1:
        raise UserError(f"top={options.top} must be at least 1")
    load_schemas()
    weights, _ = selected(options)
    assert weights.tokenizer is not None
    model = weights.model().to(resolve.device())
    choice.use(model)
    for text in texts:
        print(text)
        for row in fill(model, weights.tokenizer, text, options.top):
            print("  " + "  ".join(f"{token} {probability:.1%}" for token, probability in row))


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
