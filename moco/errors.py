"""What a person can mend is told in one line."""


class UserError(Exception):
    """Bad input: says what is wrong, where, and what to do. The command line prints it and ends with exit code 2."""
