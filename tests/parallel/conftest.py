"""The small corpus that tests of sessions have."""

from tests.session.conftest import corpus, folder

__all__ = ["corpus", "folder"]
