"""What gradlab says to whoever gave it something that it cannot take; open to every wing."""


class BadInput(ValueError):
    """Something given to gradlab that it cannot take; one sentence: what, given, allowed."""
