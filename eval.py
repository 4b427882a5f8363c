"""Fine-tune a trained model on GLUE, SuperGLUE or a task of one's own: ``python eval.py --help``."""

import sys

from cramming.cli import run_command


def main() -> None:
    """The command; torch is imported only behind it."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(argv: list[str]) -> None:
    from cramming.evaluation.command import command

    command(argv)


if __name__ == "__main__":
    main()
