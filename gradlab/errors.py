"""What gradlab says to whoever gave it something that it cannot take; open to every wing."""


class BadInput(ValueError):
    """Something given to gradlab that it cannot take; one sentence: what, given, allowed."""


class NotWritten(BadInput):
    """A file that cannot be written, for want of room or permission; what stood there stays."""
