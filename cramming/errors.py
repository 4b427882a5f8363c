"""The one exception a user may see."""


class UserError(ValueError):
    """Input that cannot be used: one clear message with the offending value and the way out.

    Entry points print it as ``error: <message>`` without a traceback and exit with code 2. Everything that checks what
    a person typed, a file they named or a machine they run on raises it; ``assert`` stays for invariants of ours.
    """
