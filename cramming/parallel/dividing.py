"""Which batches can be spread evenly over ranks."""

from cramming.errors import UserError


def check(batch_size: int, group: int, world: int) -> None:
    """Refuse a number of ranks that does not divide a step's sequences, or those that share one random draw.

    Args:
        batch_size: sequences in a step.
        group: of them, those that share one random draw.
        world: ranks.

    Raises:
        UserError: naming the nearest batch and the nearest number of ranks.
    """
    if batch_size % world:
        below, above = batch_size // world * world, -(-batch_size // world) * world
        near = min((size for size in (below, above) if size), key=lambda size: abs(size - batch_size))
        raise UserError(
            f"train.batch_size={batch_size} cannot be spread evenly over {world} ranks: use train.batch_size={near}, "
            f"or {_ranks(_nearest(batch_size, world))}"
        )
    if batch_size > group and group % world:
        raise UserError(
            f"the {group} sequences that share one random draw cannot be spread evenly over {world} ranks: use "
            f"{_ranks(_nearest(group, world))}, or another sequences_per_draw of the method"
        )


def _nearest(whole: int, world: int) -> int:
    """The divisor of ``whole`` nearest to ``world``."""
    return min((n for n in range(1, whole + 1) if whole % n == 0), key=lambda n: (abs(n - world), n))


def _ranks(number: int) -> str:
    return f"{number} rank{'s' * (number != 1)}"
