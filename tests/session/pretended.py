"""Runs that leave what a finished run leaves and train nothing, for tests of what is around runs."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from omegaconf import OmegaConf

from cramming.config import PretrainConfig

WORDS = ["arch=bert_tiny", "data=local", "data.path=x", "rst=steps", "budget=5", "data.heldout_fraction=0.1"]


class Pretended:
    """A job that only writes down that it was there.

    Attributes:
        seen: every configuration it was called with.
        loss: the validation loss a run ends with.
        before: called with each configuration first; may raise.
    """

    def __init__(
        self, loss: Callable[[PretrainConfig], float] = lambda config: 5.0, before: Callable[[int], None] | None = None
    ) -> None:
        self.seen: list[PretrainConfig] = []
        self.loss, self.before = loss, before

    def __call__(self, config: PretrainConfig) -> None:
        if self.before is not None:
            self.before(len(self.seen))
        self.seen.append(config)
        run_dir = Path(config.base_dir) / str(config.name)
        steps = int(config.stop_at_s or config.budget_s)
        (run_dir / "checkpoints" / f"step={steps:08d}").mkdir(parents=True, exist_ok=True)
        (run_dir / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(config))))
        (run_dir / "metrics.jsonl").touch()
        summary = {"steps": steps, "unit": "steps", "budget_s": config.budget_s, "spent_s": steps}
        summary |= {"end_reason": "budget spent", "validation_loss": self.loss(config)}
        (run_dir / "summary.json").write_text(json.dumps(summary))

    @property
    def names(self) -> list[str]:
        """The runs it was called for, in order."""
        return [str(config.name) for config in self.seen]
