"""kill -9 while training, saving, publishing and applying."""

from tests.reliability import kills


def test_resuming_after_kills_is_never_stopping(tmp_path):
    assert kills.trial(1, tmp_path, most_kills=2)["kills"] > 0
