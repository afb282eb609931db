"""The benchmark of workers over a network, at a size that takes seconds."""

import json

import pytest

from tests.benchmarks import programs
from tf_slipstream._compat import IS_KERAS_3

from distribution import multi_worker, network  # isort: skip (programs.py finds its folder)

LOOKUPS, DIM = 3000, 8


@pytest.mark.skipif(not IS_KERAS_3, reason="the subjects choose their Keras themselves")
def test_workers_send_what_the_model_says(tmp_path):
    if reason := network.why_not():
        pytest.skip(reason)
    options = {"rows": 2000, "dim": DIM, "lookups": LOOKUPS, "warmup": 8, "steps": 8}
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    subjects = ["tf_keras", "slipstream_stale"]
    arguments += ["--gigabits", 1, "--subjects", *subjects]
    printed = programs.run("distribution/multi_worker.py", tmp_path, *arguments)
    *lines, last = printed.splitlines()[1:]
    for subject in subjects:
        mine = [one for one in lines if f" {subject} " in one]
        assert ["not shaped" in one for one in mine] == [True, False]
        assert ["1 Gbit/s" in one and "model: " in one for one in mine] == [False, True]
    stock = float(lines[0].partition("KiB")[0].split()[-1]) * 1024
    # Headers, and what keeps the cluster together.
    assert 1 < stock / (LOOKUPS * (4 * DIM + 8)) < 1.1
    ratios = json.loads(last)
    names = ("mwms_bytes_ratio", "mwms_step_ratio", "mwms_step_ratio_1g")
    assert set(ratios) == {f"{name}_stale" for name in names}
    assert ratios["mwms_bytes_ratio_stale"] > 4


def test_ratios_are_those_of_tf_keras_at_the_same_speed():
    found = {
        (subject, gigabits): {"bytes_per_step": num_bytes, "milliseconds": [0, milliseconds, 0]}
        for subject, gigabits, num_bytes, milliseconds in (
            ("tf_keras", None, 60, 10),
            ("tf_keras", 1, 60, 30),
            ("slipstream", None, 20, 5),
            ("slipstream", 1, 20, 10),
            ("slipstream_stale", 10, 20, 10),
            ("keras3", 1, 60, 30),
        )
    }
    assert multi_worker.ratios(found) == {
        "mwms_bytes_ratio": 3,
        "mwms_step_ratio": 2,
        "mwms_step_ratio_1g": 3,
    }
    assert multi_worker.ratios({}) == {}


def test_a_step_takes_as_long_as_it_computes_and_its_bytes_travel():
    # A link of 1 Gbit/s carries 118,750 bytes of them in a millisecond.
    assert multi_worker.predicted_milliseconds(118_750 * 30, 20, 1) == pytest.approx(50)
    assert multi_worker.predicted_milliseconds(118_750 * 30, 20, 10) == pytest.approx(23)
