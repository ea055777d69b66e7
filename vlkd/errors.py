"""The one exception for mistakes that a user can mend."""


class VlkdError(Exception):
    """One clear sentence: what was expected, what arrived, what to do.

    The command line prints the sentence and exits with status 2, without a traceback. What the operating system refuses stays an
    ``OSError``: also one sentence, with status 1.
    """
