"""kill -9 while training, saving, publishing and applying."""

from tests.reliability import kills


def test_resuming_after_kills_is_never_stopping(tmp_path):
    # Seed 1 is killed more than once before it ends.
    assert kills.trial(1, tmp_path)["kills"] > 0
