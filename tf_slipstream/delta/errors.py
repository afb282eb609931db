"""What goes wrong in publishing."""


class ExportError(ValueError):
    """A version or delta that is refused, and why, in one line; nothing was published."""
