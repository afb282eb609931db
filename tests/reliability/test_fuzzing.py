"""Altered files and configurations are refused with a sentence, and with no other error."""

import pytest

from tests.reliability import fuzzing
from tests.reliability.mutations import generator, mutated, mutated_value

NUM_INPUTS = 60


@pytest.mark.parametrize("kind", fuzzing.KINDS, ids=lambda kind: kind.__name__)
def test_what_is_altered_is_refused_or_read(kind, tmp_path):
    refused = [fuzzing.try_input(kind, seed, tmp_path) for seed in range(NUM_INPUTS)]
    assert 10 < sum(refused)


def test_mutations_change_most_inputs():
    data, value = bytes(range(256)), {"a": [1, 2], "b": {"c": "x"}}
    assert sum(mutated(data, generator(seed)) != data for seed in range(100)) > 95
    assert sum(mutated_value(value, generator(seed)) != value for seed in range(100)) > 80
