"""The exceptions a user may see."""


class UserError(ValueError):
    """Input that cannot be used: one clear message with the offending value and the way out.

    Entry points print it as ``error: <message>`` without a traceback and exit with code 2. Everything that checks what
    a person typed, a file they named or a machine they run on raises it; ``assert`` stays for invariants of ours.
    """


class RankFailed(Exception):  # noqa: N818 (what happened, not what is wrong)
    """A process that trained with others has died; the message says which. Entry points print it and exit with 1."""
