"""Held-out loss, perplexity and accuracy of a trained run: ``python validate_bert.py --help``."""

import sys

from cramming.cli import run_command


def main() -> None:
    """The command; torch is imported only behind it."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(argv: list[str]) -> None:
    from cramming.evaluation.heldout import command

    command(argv)


if __name__ == "__main__":
    main()
