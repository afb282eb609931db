"""Checks the comparison's statistics against plain definitions and simulations, and its reports."""

import json

import numpy as np
import pytest

from tests.models import click_data, click_model, embedding_of, fit, random_table, sleepy
from tf_slipstream import Experiment, SlipstreamOptimizer, popular_share
from tf_slipstream._compat import keras
from tf_slipstream.cli import main
from tf_slipstream.comparison import report, statistics
from tf_slipstream.comparison.compare import RunsError, compare, load_runs

NUM = 3000


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def examples(num=NUM, seed=0):
    rng = np.random.default_rng(seed)
    signal = rng.standard_normal(num)
    return signal, rng.random(num) < sigmoid(signal - 1)


def save_runs(folder, noises, num_seeds=4, num=NUM, seconds=None):
    """Saves runs of configurations whose scores are the truth with noise of their own."""
    signal, labels = examples(num)
    groups = {"country": np.where(np.arange(num) % 4 == 0, "jp", "us")}
    experiment = Experiment(folder)
    for seed in range(num_seeds):
        rng = np.random.default_rng([seed, 7])
        base = signal + 0.3 * rng.standard_normal(num)
        for name, noise in noises.items():
            with experiment.run(name, seed) as run:
                pass
            run.seconds = (seconds or {}).get(name, 1.0)
            scores = sigmoid(base + noise * rng.standard_normal(num) - 1)
            run.save(labels, scores, groups, waits=np.where(groups["country"] == "jp", 0.5, 0.25))


def test_auc_counts_pairs_and_ties_half():
    rng = np.random.default_rng(0)
    labels, scores = rng.random(200) < 0.3, np.round(rng.random(200), 1)
    positives, negatives = scores[labels][:, None], scores[~labels][None]
    expected = (positives > negatives).mean() + (positives == negatives).mean() / 2
    assert statistics.auc(labels, scores) == pytest.approx(expected)
    assert statistics.placements(labels, scores)[1].mean() == pytest.approx(expected)


def test_the_error_of_a_change_is_that_of_drawing_test_examples_anew():
    changes, errors = [], []
    for seed in range(300):
        signal, labels = examples(400, seed)
        rng = np.random.default_rng([seed, 1])
        pair = [sigmoid(signal + noise * rng.standard_normal(400)) for noise in (0.3, 0.6)]
        found = statistics.auc_change(labels, [tuple(pair)])
        changes.append(found["mean"])
        errors.append(found["examples_error"])
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.1)


@pytest.mark.parametrize(
    "freedom, expected",
    [(1, 12.7062), (2, 4.3027), (5, 2.5706), (30, 2.0423), (120, 1.9799), (1e6, 1.96)],
)
def test_the_quantile_is_that_of_tables(freedom, expected):
    assert statistics.t_quantile(freedom) == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize(
    "noise, margin, verdict",
    [(0.02, 0.01, "no worse"), (1.5, 0.001, "worse"), (0.3, 0.001, "not enough data")],
)
def test_the_verdict_follows_from_the_interval(noise, margin, verdict, tmp_path):
    num = 300 if verdict == "not enough data" else NUM
    save_runs(tmp_path, {"none": 0.0, "it": noise}, num=num)
    found = compare(load_runs(tmp_path), "none", margin)["comparisons"]["it"]
    assert found["verdict"] == verdict, found
    if verdict == "not enough data":
        assert "more" in found["advice"]
    better = compare(load_runs(tmp_path), "it", margin)["comparisons"]["none"]
    assert better["auc"]["mean"] == pytest.approx(-found["auc"]["mean"])
    if verdict == "worse":
        assert better["verdict"] == "better"


def test_one_seed_is_not_enough(tmp_path):
    save_runs(tmp_path, {"none": 0.0, "it": 0.0}, num_seeds=1)
    found = compare(load_runs(tmp_path), "none")["comparisons"]["it"]
    assert found["verdict"] == "not enough data" and "at least 3" in found["advice"]


def test_as_many_seeds_as_it_says_are_enough():
    change = {"mean": 0.0, "num_seeds": 4, "seeds_error": 0.001, "examples_error": 0.0}
    needed = statistics.seeds_needed(change, 0.001)
    assert 2 * 0.002 / np.sqrt(needed) <= 0.001 * 1.001
    assert statistics.seeds_needed(change | {"examples_error": 0.01}, 0.001) is None


def test_groups_have_what_their_examples_alone_say(tmp_path):
    save_runs(tmp_path, {"none": 0.0, "it": 0.5})
    runs = load_runs(tmp_path)
    groups = compare(runs, "none", by="country")["comparisons"]["it"]["groups"]
    assert [group["name"] for group in groups] == ["us", "jp"]
    assert [group["waits"] for group in groups] == pytest.approx([0.25, 0.5])
    mine = runs["none"][0]["group_country"] == "jp"
    assert groups[1]["num_examples"] == mine.sum() == NUM // 4
    changes = [
        statistics.auc(run["labels"][mine], run["scores"][mine])
        - statistics.auc(base["labels"][mine], base["scores"][mine])
        for run, base in ((runs["it"][seed], runs["none"][seed]) for seed in range(4))
    ]
    assert groups[1]["auc"]["mean"] == pytest.approx(np.mean(changes))


def test_what_time_is_worth(tmp_path):
    save_runs(tmp_path, {"none": 0.0, "it": 0.0}, seconds={"none": 7200.0, "it": 3600.0})
    found = compare(load_runs(tmp_path), "none", price=3.0, runs_per_day=2, cost_once=360.0)[
        "comparisons"
    ]["it"]
    assert found["speed"] == pytest.approx(2)
    expected = {"hours_a_month": 60, "money_a_month": 180, "break_even_months": 2}
    assert found["return"] == pytest.approx(expected)


def test_the_program_prints_and_writes_the_same_numbers(tmp_path, capsys):
    folder, page, text = tmp_path / "runs", tmp_path / "a.html", tmp_path / "a.md"
    save_runs(folder, {"none": 0.0, "it": 0.5})
    command = ["compare", str(folder), "--baseline", "none", "--by", "country"]
    command += ["--html", str(page), "--markdown", str(text)]
    assert main([*command, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert max(map(len, printed.splitlines())) <= 100
    change = found["comparisons"]["it"]["auc"]
    for told in (printed, page.read_text(), text.read_text()):
        assert f"{change['mean']:+.4f} ± {change['high'] - change['mean']:.4f}" in told
        assert f"{found['configurations']['it']['log_loss']:.4f}" in told
    assert "http" not in page.read_text() and "<script" not in page.read_text()
    assert "モデル" in report.page(found, "", "ja")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--baseline", "other"], "There is no configuration 'other'; there are: it, none"),
        (["--baseline", "none", "--by", "shop"], "no column 'shop'; they have: country"),
        (["--baseline", "none", "--margin", "0"], "--margin to be above 0"),
    ],
)
def test_wrong_wishes_get_a_sentence(arguments, message, tmp_path, capsys):
    save_runs(tmp_path, {"none": 0.0, "it": 0.5}, num_seeds=2, num=200)
    assert main(["compare", str(tmp_path), *arguments]) == 1
    assert message in capsys.readouterr().err


def test_runs_that_cannot_be_compared_get_a_sentence(tmp_path):
    with pytest.raises(RunsError, match="has no runs"):
        load_runs(tmp_path)
    save_runs(tmp_path, {"none": 0.0}, num_seeds=1)
    with pytest.raises(RunsError, match="nothing to compare"):
        compare(load_runs(tmp_path), "none")
    save_runs(tmp_path, {"it": 0.0}, num_seeds=1, num=100)
    with pytest.raises(RunsError, match="different test examples"):
        load_runs(tmp_path)
    (tmp_path / "it-0.run.npz").write_bytes(b"PK\3\4 damaged")
    with pytest.raises(RunsError, match="damaged"):
        load_runs(tmp_path)


@pytest.mark.parametrize(
    "labels, scores, message",
    [
        ([0, 1], [0.5], "one value for each of 2 labels"),
        ([0, 2], [0.5, 0.5], "`labels` must be 0 and 1"),
        ([0, 0], [0.5, 0.5], "`labels` must be 0 and 1, with some of both"),
        ([0, 1], [0.5, 3.0], "probabilities"),
        ([0, 1], [0.5, np.nan], "probabilities"),
    ],
)
def test_what_is_no_score_is_not_saved(labels, scores, message, tmp_path):
    with Experiment(tmp_path).run("it", 0) as run:
        pass
    with pytest.raises(ValueError, match=message):
        run.save(labels, scores)
    assert not list(tmp_path.iterdir())


def test_popular_rows_are_those_of_the_state():
    layer = embedding_of(random_table(20), name="user")
    optimizer = SlipstreamOptimizer(keras.optimizers.Adagrad(0.05), policy=sleepy())
    ids, labels = click_data(64, num_rows=10)
    fit(click_model(layer, optimizer), (ids, labels))
    shares = popular_share(optimizer, {"user": np.array([[0, 1], [3, 15], [15, 16]])})
    np.testing.assert_array_equal(shares, [1, 0.5, 0])
    with pytest.raises(ValueError, match="no table 'item'; there are: user"):
        popular_share(optimizer, {"item": [0]})
