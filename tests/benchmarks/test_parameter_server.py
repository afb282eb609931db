"""The benchmark of parameter servers, at a size that takes seconds."""

import json

import pytest

from tests.benchmarks import programs

from distribution import network  # isort: skip (programs.py puts its folder on the path)


def test_it_counts_the_bytes_of_stock_and_ours(tmp_path):
    options = {"rows": 3000, "dim": 32, "batch": 128, "fields": 8, "warmup": 40, "steps": 12}
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    ends = ("", "_stale", "_bfloat16", "_long_bfloat16")
    subjects = ["tf_keras", *(f"slipstream{end}" for end in ends)]
    arguments += ["--rounds", 2, "--gigabits", 1, "--subjects", *subjects]
    printed = programs.run("distribution/parameter_server.py", tmp_path, *arguments)
    ratios = json.loads(printed.splitlines()[-1])
    speeds = [""] if network.why_not() else ["", "_1g"]
    expected = {f"ps_bytes_ratio{end}" for end in ends}
    for speed in speeds:
        expected |= {f"ps_step_ratio{speed}{end}" for end in ends}
        expected |= {f"ps_stale_over_none{speed}", f"ps_long_over_none{speed}_bfloat16"}
    assert set(ratios) == expected
    # Few distinct rows: bytes follow, whatever messages cost.
    assert ratios["ps_bytes_ratio"] > 1.1 and ratios["ps_bytes_ratio_stale"] > 1.1
    assert ratios["ps_bytes_ratio_bfloat16"] > 1.2 * ratios["ps_bytes_ratio"]
    for subject in subjects:
        assert f" {subject} " in printed


def test_two_workers_may_share_a_machine(tmp_path):
    options = {"rows": 3000, "dim": 8, "batch": 64, "fields": 4, "warmup": 8, "steps": 8}
    arguments = [word for name, value in options.items() for word in (f"--{name}", value)]
    arguments += ["--per-machine", 2, "--gigabits", "--subjects", "slipstream"]
    printed = programs.run("distribution/parameter_server.py", tmp_path, *arguments)
    assert " slipstream_paired " in printed


def test_stock_is_compared_with_one_and_two_workers_on_a_machine():
    from distribution import parameter_server

    names = [f"{name}{end}" for name in ("tf_keras", "slipstream") for end in ("", "_paired")]
    results = {
        (name, None): {"bytes_per_step": 60, "milliseconds": [0, 60 / num, 0]}
        for num, name in enumerate(names, 1)
    }
    assert parameter_server.ratios(results) == {
        "ps_bytes_ratio": 1,
        "ps_step_ratio": 3,
        "ps_step_ratio_paired": 4,
        "ps_step_ratio_paired_both": 2,
    }


def test_a_step_takes_as_long_as_processors_and_links_do():
    from distribution.parameter_server import predicted_milliseconds as predicted

    # A link of 1 Gbit/s carries 118,750 bytes of them in a millisecond.
    assert predicted(0, 20, 1, 2, 2) == 20
    assert predicted(118_750 * 30, 0, 1, 2, 2) == pytest.approx(15)
    # One worker computes and waits in turn; more compute while others wait.
    assert predicted(118_750 * 30, 20, 1, 1, 1) == pytest.approx(50)
    assert 20 < predicted(118_750 * 30, 20, 1, 2, 2) < 25 + 10
    # Two on a machine: one's rows come in while the other's gradients go out.
    assert predicted(118_750 * 30, 0, 1, 1, 1, per_machine=2) == pytest.approx(22.5)
    assert predicted(118_750 * 30, 0, 1, 2, 2, per_machine=2) < 15
    # Two servers' links for four workers'.
    assert predicted(118_750 * 30, 0, 1, 4, 2) == pytest.approx(15)
    assert predicted(118_750 * 30, 20, 1, 2, 2) < predicted(118_750 * 31, 20, 1, 2, 2)


@pytest.mark.parametrize("subject, rows", [("tf_keras", 100 + 40), ("tf_keras_legacy", 200)])
def test_the_model_of_stock_counts_each_lookup_and_what_is_sent_back(subject, rows):
    from distribution import parameter_server

    args = parameter_server.arguments(["--batch", "10", "--fields", "10", "--dim", "2"])
    found = {"subject": subject, "distinct_rows": 40}
    assert parameter_server.predicted_bytes(args, found) == rows * (8 + 8)
