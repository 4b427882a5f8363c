"""Pretrain a masked language model inside a fixed compute budget: ``python pretrain_bert.py --help``."""

import sys

from cramming.cli import pretraining, run_command
from cramming.config import PretrainConfig


def job(config: PretrainConfig) -> None:
    """Train one run; torch is imported only here, so that help and mistakes are answered at once."""
    from cramming.session import pretrain

    pretrain(config)


def main() -> None:
    """The command."""
    run_command(lambda: pretraining(job, sys.argv[1:]), ranks=True)


if __name__ == "__main__":
    main()
