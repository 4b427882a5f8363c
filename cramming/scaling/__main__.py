"""``python -m cramming.scaling``: see ``command``."""

import sys

from cramming.cli import run_command
from cramming.scaling.command import command

if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
