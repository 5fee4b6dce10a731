"""The one error that the tools print without a traceback: what is wrong with what the user gave, and what to do."""


class Refusal(Exception):
    """Ends the program with exit code 2 and this one message."""
