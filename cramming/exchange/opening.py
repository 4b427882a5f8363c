"""A checkpoint by what a person typed, whatever it is: every command that takes one asks here."""

from cramming.exchange import importing, weights
from cramming.exchange.importing import FRESH, Request
from cramming.exchange.places import locate
from cramming.exchange.weights import Weights


def opened(given: str, base_dir: str, request: Request | None = None) -> Weights:
    """The checkpoint that ``given`` names: a run's, a folder's, a file's, or one of the hub's.

    Args:
        given: see ``places``.
        base_dir: where runs live.
        request: what is said about files that do not say it themselves.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    place = locate(given, base_dir)
    request = request or Request()
    if place.run is not None:
        found = weights.of_run(place.run)
        return weights.without_head(found) if request.head == FRESH else found
    assert place.weights is not None
    from cramming.evaluation import saved  # knows what opens checkpoints

    fine_tuned = saved.encoder_of(place.weights.parent, place.title, request.head)
    return fine_tuned or importing.of_files(place.weights, place.title, request)
