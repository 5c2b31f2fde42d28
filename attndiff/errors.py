"""Mistakes of a user's, as opposed to faults of ours."""


class UserError(ValueError):
    """One clear sentence that names the argument or file and says what to do; the command line prints it alone."""
