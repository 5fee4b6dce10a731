"""What the recipe may say to who runs it."""


class Unavailable(Exception):
    """Something that a stage needs cannot be fetched here; the message says what and why."""
