"""The one exception for what a user can put right."""


class UserError(ValueError):
    """Something that the user asked for cannot be done; the message names it and the way out, in one line.

    The command line prints the message without a traceback and exits with code 2. In other programs it is an ordinary
    ValueError.
    """
