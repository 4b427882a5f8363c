"""``python -m cramming.gather_checkpoint checkpoint=first@last``: what ranks wrote in parts, as one writes it."""

import sys
from dataclasses import dataclass

from cramming import folder
from cramming.cli import load_schemas, parse, run_command
from cramming.errors import UserError

_USAGE = """\
Turn a checkpoint that many ranks wrote in parts into an ordinary one, in its place; no more than a part is in memory.

  python -m cramming.gather_checkpoint checkpoint=first          the run's last one
  python -m cramming.gather_checkpoint checkpoint=first@12h      also @step=4000, @last

It appears whole or not at all. All commands read both forms: this is for other programs, and for fewer files.

Options: checkpoint, base_dir=outputs"""


@dataclass
class Options:
    """What can be set."""

    checkpoint: str | None = None
    base_dir: str = "outputs"


def command(argv: list[str]) -> None:
    """Gather a checkpoint and say where it is.

    Raises:
        UserError: no such checkpoint, it is damaged, the run is training, or the disk is full.
    """
    from cramming.saving import sharded

    options, words = parse(argv, Options, _USAGE)
    if words:
        raise UserError(f"{words[0]!r} is not an option: give checkpoint=...")
    if options.checkpoint is None:
        raise UserError("checkpoint= is needed: a run's, such as checkpoint=first@last")
    load_schemas()
    found = folder.find(options.base_dir, None, options.checkpoint)
    if not found.checkpoint.in_parts:
        print(f"{found}: it is an ordinary checkpoint already")
        return
    with folder.held(found.run_dir):
        sharded.gather(found.checkpoint)
    print(f"{found}: {found.checkpoint.folder} is an ordinary checkpoint now")


if __name__ == "__main__":
    run_command(lambda: command(sys.argv[1:]))
