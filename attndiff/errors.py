"""Mistakes of a user's, as opposed to faults of ours."""


class UserError(ValueError):
    """One clear sentence that names the argument or file and says what to do; the command line prints it alone."""


class Stopped(Exception):
    """Work that ended early because a signal asked for it, with everything saved.

    Args:
        sentence: What was done and how to go on.
        number: The signal's; the exit code is 128 more, as shells have it.
    """

    def __init__(self, sentence: str, number: int):
        super().__init__(sentence)
        self.code = 128 + number
