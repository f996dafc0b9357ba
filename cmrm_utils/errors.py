"""The one error that a person can mend by changing what they asked for."""


class InputError(ValueError):
    """Bad input: the message names the culprit and what to do; the command line exits with 2."""
