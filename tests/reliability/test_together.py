"""Two models train in two threads while a third thread uses both in every way."""

from tests.reliability import together


def test_no_update_is_lost(tmp_path):
    assert together.trial(0, tmp_path, num_steps=200)["calls"] > 5
