"""Options of the optional trackers."""

from dataclasses import dataclass, field

from cramming.errors import UserError
from cramming.suggest import nearest

MODES = ("disabled", "online", "offline")


@dataclass
class WandbConfig:
    """Weights & Biases. ``wandb=none`` (the default) never imports it; ``offline`` needs neither key nor network.

    A run keeps one W&B id for its life, so resuming it continues the same W&B run.

    Raises:
        UserError: a mode that does not exist.
    """

    mode: str = "disabled"  # disabled, online or offline; WANDB_MODE in the environment can hold online back
    project: str | None = "cramming-pretrain"
    entity: str | None = None  # the team or user; null: the account's default
    group: str | None = None  # runs that belong together, such as the seeds of one setting
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.mode not in MODES:
            raise UserError(f"wandb.mode={self.mode} does not exist{nearest(self.mode, MODES)}")
