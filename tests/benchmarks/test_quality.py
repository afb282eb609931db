"""The bench of quality: its parts, and all of it at a tiny size."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest

from tests.conftest import NUM_THREADS
from tf_slipstream import StalenessPolicy, _compat

BENCHMARKS = pathlib.Path(__file__).parents[2] / "benchmarks"


@pytest.fixture(scope="module")
def quality():
    """The bench's parts, which are no package of the project."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import quality
        from quality import configurations, controls, metrics, results  # noqa: F401

        yield quality
    finally:
        sys.path.remove(str(BENCHMARKS))


def test_the_auc_is_the_share_of_pairs_in_the_right_order(quality):
    rng = np.random.default_rng(0)
    labels = rng.integers(2, size=60).astype(np.float32)
    scores = rng.integers(9, size=60).astype(np.float32)  # with ties
    pairs = scores[labels > 0.5][:, None] - scores[labels < 0.5][None, :]
    expected = np.mean((np.sign(pairs) + 1) / 2)
    assert quality.metrics.area_under_curve(labels, scores) == pytest.approx(expected, abs=1e-12)


def test_recall_leaves_out_known_items(quality):
    scores = np.array([[9.0, 8.0, 7.0, 6.0, 5.0]])
    assert quality.metrics.recall_at(2, scores, [[0]], [[1, 3]]) == 0.5


def test_the_log_loss_is_that_of_the_probabilities(quality):
    labels, logits = np.array([1.0, 0.0]), np.array([2.0, -1.0])
    probabilities = 1 / (1 + np.exp(-logits))
    expected = -np.mean([np.log(probabilities[0]), np.log(1 - probabilities[1])])
    assert quality.metrics.log_loss(labels, logits) == pytest.approx(expected)


def test_a_configuration_is_a_preset_changes_or_a_control(quality):
    parse = quality.configurations.parse
    assert parse("none").policy is None and parse("none").family == "none"
    assert parse("default").policy == StalenessPolicy()
    assert parse("balanced,window=9").policy == StalenessPolicy.balanced(window=9)
    assert parse("auto,budget=0.001,window=9").policy == StalenessPolicy.auto(0.001, window=9)
    changed = parse("on_stale=skip,threshold=0.5")
    assert changed.policy == StalenessPolicy(on_stale="skip", threshold=0.5)
    assert changed.family == "skip"
    chosen = parse("contribution=0.5,wide")
    assert (chosen.keep, chosen.method, chosen.wide) == (0.5, "contribution", True)
    fixed = parse("fixed=8,min_updates=20")
    assert (fixed.policy.first_sleep, fixed.policy.max_sleep) == (8, 8)
    assert fixed.policy.min_updates == 20 and fixed.family == "fixed"
    assert parse("random_rows=0.3").random_rows == 0.3
    assert (parse("dense").stock, parse("stock").family) == ("dense", "stock")
    assert parse("frozen_after=300").family == "frozen_after"
    # What it is called does not decide about its result.
    assert parse("default").settings() == parse("conservative").settings()


@pytest.mark.parametrize(
    "text", ["nothing", "default,windw=3", "default,budget=1", "none,window=3", "random_rows=1,x=2"]
)
def test_what_is_no_configuration_is_refused(quality, text):
    with pytest.raises(ValueError, match="Expected field=value"):
        quality.configurations.parse(text)


def test_random_rows_leave_out_the_share_that_was_asked_for(quality):
    configuration = quality.configurations.parse("random_rows=0.3")
    rows = np.repeat(np.arange(5000, dtype=np.int32), 2)
    drops = quality.controls.Filter(configuration, 5000, seed=0)
    first, second = (drops.keep(rows, step).numpy() for step in (1, 2))
    np.testing.assert_array_equal(first[::2], first[1::2])  # all lookups of a row
    for kept in (first, second):
        assert abs(kept.mean() - 0.7) < 0.03
    assert abs(np.mean(first == second) - (0.49 + 0.09)) < 0.03  # independently in each step
    assert drops.counts()[0] == 20_000 and drops.counts()[2] == 10_000


def test_popularity_alone_freezes_rows_for_ever_after_their_updates(quality):
    configuration = quality.configurations.parse("frozen_after=2")
    drops = quality.controls.Filter(configuration, 4, seed=0)
    kept = [drops.keep(np.array([0, 0, step % 4], np.int32), step).numpy() for step in range(1, 5)]
    np.testing.assert_array_equal(kept, [[1, 1, 1], [1, 1, 1], [0, 0, 1], [0, 0, 0]])
    assert drops.counts() == [12, 5, 7, 2]


def test_stale_inputs_are_those_whose_rows_were_all_looked_up_often(quality):
    control = quality.controls.StaleInputs([3, 2], keep=0.5)
    ids = np.array([[0, 0], [0, 1], [1, 0], [0, 0]], np.int32)
    labels = np.zeros(4, np.float32)
    # All rows are new, so that those are kept that come first.
    np.testing.assert_array_equal(control.select((ids, None), labels).positions, [0, 1])
    # Now row 1 of each table has one lookup, the rows 0 three.
    np.testing.assert_array_equal(control.select((ids, None), labels).positions, [1, 2])
    ids[3] = [2, 0]  # a new row
    np.testing.assert_array_equal(control.select((ids, None), labels).positions, [1, 3])
    assert control.stats().share_kept == 0.5


def test_candidates_become_clicks_of_their_own(quality):
    from quality import data_sets

    ranked = data_sets.DataSet(
        (data_sets.Table("user", 9, 1), data_sets.Table("item", 99, 3)),
        None,
        lambda seed, epoch: (examples, np.array([1, 0])),
        examples := data_sets._candidates(np.array([[1, 10, 11, 12], [2, 20, 21, 22]]), 1),
    )
    clicks = data_sets._as_clicks(ranked, 1, has_tower=False)
    found, order = clicks.epoch(0, 0)
    expected = [[1, 10], [1, 11], [1, 12], [2, 20], [2, 21], [2, 22]]
    np.testing.assert_array_equal(found.ids, expected)
    np.testing.assert_array_equal(found.labels, [1, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(np.sort(order), np.arange(6))
    assert [table.num_columns for table in clicks.tables] == [1, 1]
    rows = np.arange(6 * 2 * 4, dtype=np.float32).reshape(6, 2, 4)
    assert clicks.make_model(4)(rows, None).shape == (6,)


def line(family, seed, auc):
    """Returns a run's line of results, of one data set and optimizer."""
    settings = {"data": "d", "optimizer": "o", "configuration": {"f": family}, "seed": seed}
    result = {"auc": auc, "log_loss": auc, "lookups_saved": 0.5, "row_updates_saved": 0.25}
    result["examples_per_second"] = 1.0
    return {"name": family, "family": family, "settings": settings, "result": result}


def test_changes_are_paired_by_seed(quality):
    lines = [line("none", 0, 0.7), line("none", 1, 0.8), line("defer", 1, 0.79)]
    lines += [line("defer", 0, 0.68), line("defer", 2, 0.1)]  # no partner
    (configurations,) = quality.results.jobs(lines).values()
    _, defer = quality.results.compare(configurations, ["auc"])
    assert defer.changes["auc"] == pytest.approx(-0.015)
    assert defer.errors["auc"] == pytest.approx(0.005)
    assert "-0.01500 ± 0.00500" in quality.results.summary(lines)


def test_the_frontier_is_drawn(quality, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib", reason="matplotlib, which draws the plots, is not installed")
    for one in (line("none", 0, 0.7), line("defer", 0, 0.69), line("skip", 0, 0.68)):
        quality.results.append(tmp_path / "quality.jsonl", one)
    command = ["", "--input", tmp_path / "quality.jsonl", "--folder", tmp_path, "--names"]
    monkeypatch.setattr(sys, "argv", [*map(str, command)])
    load_script("plot_quality").main()
    assert {path.suffix for path in tmp_path.glob("d_o_auc*")} == {".png", ".svg"}


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="the bench trains with Keras 3")
def test_the_bench_runs_resumes_and_sums_up(quality, tmp_path, monkeypatch, capsys):
    output = tmp_path / "quality.jsonl"
    policy = "min_updates=5,updates_per_sleep=1,window=2"
    names = ["none", policy, "random_rows=0.5", "random_inputs=0.5", "contribution=0.5,wide"]
    options = ["--examples", 2048, "--test-examples", 1024, "--cardinalities", 50, 20]
    options += ["--batch-size", 64, "--data", "changing", "--output", output, "--seeds", 0]
    # In this process, whose threads are set already; starting another takes longer than training.
    options += ["--threads", NUM_THREADS, "--configurations", *names]
    bench = load_script("quality")
    command = ["", *map(str, options)]
    monkeypatch.setattr(sys, "argv", command)
    bench.main()
    assert "5 runs to do; 0 in" in capsys.readouterr().err
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert [line["name"] for line in lines] == names
    none, policy, random, inputs, chosen = (line["result"] for line in lines)
    assert abs(chosen["inputs_dropped"] - 0.5) < 0.1 and chosen["steps"] < none["steps"]
    assert none["lookups_saved"] == none["row_updates_saved"] == 0
    assert policy["lookups_saved"] > 0.3 and policy["row_updates_saved"] > 0.3
    assert abs(random["lookups_saved"] - 0.5) < 0.1
    assert inputs["inputs_dropped"] == 0.5 and inputs["steps"] < none["steps"]
    assert all(0.3 < line["result"]["auc"] < 1 for line in lines)
    assert none["checkpoints"][0]["step"] == 16  # where the teacher changes

    bench.main()
    assert "0 runs to do; 5 in" in capsys.readouterr().err
    # What is evaluated on the way, with all that is held, leaves no trace.
    more = tmp_path / "more.jsonl"
    changes = ["--output", more, "--checkpoints", 3, "--configurations", names[1]]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, changes)])
    bench.main()
    again = json.loads(more.read_text())["result"]
    assert again["auc"] == policy["auc"]
    assert len(again["checkpoints"]) > len(policy["checkpoints"])
    assert any(one["auc"] != one["auc_while_held"] for one in again["checkpoints"])

    # Each at its own rate, which is chosen on a part of the training data alone.
    tuned = tmp_path / "tuned.jsonl"
    changes = ["--data", "synthetic", "--output", tuned, "--best-of", 1e-6, 0.1]
    changes += ["--configurations", "none", "stale_inputs=0.5"]
    monkeypatch.setattr(sys, "argv", [*command, *map(str, changes)])
    bench.main()
    lines = [json.loads(line) for line in tuned.read_text().splitlines()]
    tuning = [line for line in lines if line["settings"].get("tuning")]
    assert len(tuning) == 4 and len(lines) == 6
    for one in lines[4:]:
        tried = [line for line in tuning if line["name"] == one["name"]]
        best = min(tried, key=lambda line: line["result"]["log_loss"])["settings"]
        assert one["settings"]["learning_rate"] == best["learning_rate"]
        assert best["seed"] != one["settings"]["seed"]
    assert len(quality.results.jobs(lines)) == 3  # two of tuning

    monkeypatch.setattr(sys, "argv", [*command, "--summary"])
    bench.main()
    assert f"| `{names[1]}` | 1 | {policy['lookups_saved']:.1%} |" in capsys.readouterr().out


def load_script(name):
    """Imports a benchmark that has the name of its parts' package."""
    spec = importlib.util.spec_from_file_location(f"{name}_script", BENCHMARKS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
