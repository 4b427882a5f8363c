"""Run folders to one page of curves, tables and error bars: ``python report.py --help``."""

import sys

from cramming.cli import run_command


def main() -> None:
    """The command; what draws is imported only behind it."""
    run_command(lambda: _command(sys.argv[1:]))


def _command(argv: list[str]) -> None:
    from cramming.report.command import command

    command(argv)


if __name__ == "__main__":
    main()
