"""What `tests.export` publishes, here too."""

from tests.export.conftest import published

__all__ = ["published"]
