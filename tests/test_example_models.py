"""Runs the examples of models as their users would, in this process: TensorFlow is loaded once."""

import argparse
import importlib
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream import _compat

EXAMPLES = pathlib.Path(__file__).parent.parent / "examples"
CLICKS = ["--scale", 0.0005, "--dim", 4]
CHOICES = ["--users", 300, "--items", 200, "--dim", 8]
# What each script has to be given, to be quick.
ARGUMENTS = {
    "click_models": [*CLICKS, "--examples", 6000, "--test-examples", 3000, "--hidden", 16],
    "sequences": [*CHOICES, "--length", 8, "--blocks", 1, "--epochs", 8, "--learning-rate", 0.01],
    "continuous": [*CLICKS, "--days", 3, "--examples", 6000],
    "larger_vocabulary": [*CHOICES, "--interactions", 20_000, "--batch-size", 128],
}
if _compat.IS_KERAS_3:
    ARGUMENTS["tuning"] = ["--scale", 0.0005, "--trials", 2, "--examples", 2000]
    ARGUMENTS["tuning"] += ["--test-examples", 1000, "--batch-size", 256]
else:
    ARGUMENTS["tfrs_retrieval"] = [*CHOICES, "--interactions", 6000, "--batch-size", 128]
    ARGUMENTS["tfrs_ranking"] = [*CHOICES, "--interactions", 20_000, "--batch-size", 128]
NEEDS = {
    "tuning": "keras_tuner",
    "tfrs_retrieval": "tensorflow_recommenders",
    "tfrs_ranking": "tensorflow_recommenders",
}


@pytest.fixture
def script(monkeypatch):
    """Gives the function that imports a script of the examples."""

    def imported(name):
        if name in NEEDS:
            pytest.importorskip(NEEDS[name], reason=f"{NEEDS[name]} is an extra")
        return importlib.import_module(name)

    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.setenv("COLUMNS", "80")
    return imported


def run(capsys, script, *more):
    """Runs a script; returns what it prints, and a dict from a row's name to its numbers."""
    name = script.__name__
    script.main([str(argument) for argument in (*ARGUMENTS[name], *more)])
    printed = capsys.readouterr().out
    assert all(len(line) <= 80 for line in printed.splitlines() if "published" not in line)
    lines = [re.split(r"  +", line.strip()) for line in printed.splitlines()]
    return printed, {name: cells for name, *cells in lines if cells}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_help_fits_a_terminal_and_names_a_command(script, capsys, name):
    with pytest.raises(SystemExit) as ended:
        script(name).main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert f"python examples/{name}.py" in text


def test_a_script_starts_from_a_shell_and_quietly():
    command = [sys.executable, str(EXAMPLES / "sequences.py"), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "usage: sequences.py" in done.stdout
    assert "absl" not in done.stderr and "rebuild TensorFlow" not in done.stderr


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_wrong_argument_is_named(script, capsys, name):
    option = "--days" if name == "continuous" else "--batch-size"
    with pytest.raises(SystemExit) as ended:
        script(name).main([option, "0"])
    assert ended.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert f"argument {option}: expected a whole number above 0, got '0'" in error


@pytest.mark.parametrize("wrong", ["-1", "0", "nan", "inf", "much"])
def test_a_wrong_rate_is_named(script, capsys, wrong):
    with pytest.raises(SystemExit):
        script("sequences").main([f"--learning-rate={wrong}"])
    assert f"expected a number above 0, got '{wrong}'" in capsys.readouterr().err


def test_a_folder_with_files_is_not_written_to(script, capsys, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit):
        script("continuous").main(["--folder", str(tmp_path)])
    assert "has files; name a new folder" in capsys.readouterr().err


@pytest.mark.parametrize("name", ARGUMENTS)
def test_a_file_that_is_not_there_is_one_line(script, tmp_path, name):
    folder = ["--folder", tmp_path / "new"] if name in ("continuous", "tuning") else []
    arguments = map(str, (*folder, "--data", tmp_path / "missing.csv"))
    with pytest.raises(SystemExit, match="Cannot read .*missing.csv") as ended:
        script(name).main([*arguments])
    assert "\n" not in str(ended.value)


# Under SGD stock Keras sums the gradients of a repeated id as well.
def test_click_models_learn_what_those_of_stock_keras_do(script, capsys):
    # 52 stock layers: with tf_keras, which is slow to trace them, one model will do.
    models = ["deepfm", "dcn"] if _compat.IS_KERAS_3 else ["dcn"]
    sgd = ["--optimizer", "SGD", "--learning-rate", 0.05, "--batch-size", 128]
    _, rows = run(capsys, script("click_models"), *sgd, "--models", *models)
    for name in models:
        stock, ours = (
            float(rows[f"{name}, {kind}"][1]) for kind in ("stock Keras", "tf_slipstream")
        )
        assert abs(ours - stock) < 2e-4
        assert ours > 0.53


def test_sequences_are_learned(script, capsys):
    _, rows = run(capsys, script("sequences"))
    for kind in ("stock Keras", "tf_slipstream"):
        hit_rate, ndcg = map(float, rows[kind][1:])
        assert ndcg < hit_rate
        assert hit_rate > 3 * 10 / 200  # at random 10 of 200


def test_padding_has_no_part_in_the_loss_of_sequences(script):
    sequences = script("sequences")
    args = argparse.Namespace(dim=8, blocks=1, heads=2, dropout=0.0)
    model, recommender = sequences.sasrec(20, 4, args, sequences.slipstream.SlipstreamEmbedding)
    model.compile(loss=_compat.keras.losses.BinaryCrossentropy(from_logits=True))
    items = np.array([[0, 0, 3, 4], [1, 2, 3, 4]], "int32")
    candidates = np.random.default_rng(0).integers(1, 21, (2, 4, 2)).astype("int32")
    labels = np.tile(np.float32([1, 0]), (2, 4, 1))
    others = candidates.copy()
    others[0, :2] = 7
    losses = [model.test_on_batch((items, drawn), labels) for drawn in (candidates, others)]
    assert losses[0] == losses[1]
    others[0, 2:] = 7
    assert model.test_on_batch((items, others), labels) != losses[0]
    assert recommender(items).shape == (2, 21)


def test_the_model_that_is_brought_up_to_date_is_the_better_one(script, capsys, tmp_path):
    printed, rows = run(capsys, script("continuous"), "--folder", tmp_path / "published")
    assert "as the trained one" in printed
    rows_sent, megabytes, daily, of_day_1 = rows["day 3"]
    assert float(daily) > float(of_day_1) + 0.01
    assert float(megabytes) <= float(rows["day 1"][1])
    versions = (tmp_path / "published" / "models").iterdir()
    assert sorted(path.name for path in versions) == ["1", "2", "3"]
    assert 0 < int(rows_sent.replace(",", ""))


def test_what_was_learned_stays_in_a_larger_vocabulary(script, capsys, tmp_path):
    larger = script("larger_vocabulary")
    printed, rows = run(capsys, larger, "--publish", tmp_path / "published")
    aucs = {name: [*map(float, cells)] for name, cells in rows.items() if len(cells) == 2}
    grown = aucs["slipstream.resize"]
    assert grown[1] > aucs["new names are unknown"][1] + 0.02
    assert grown[0] > aucs["start anew"][0]
    assert "takes names" in printed
    serve = tf.saved_model.load(str(tmp_path / "published" / "1")).signatures["serving_default"]
    users = tf.constant(["u7", "never seen"])
    answer = serve(user=users, item=tf.constant(["i3", "i3"]))["output_0"]
    assert answer.shape == (2, 1)


@pytest.mark.skipif(_compat.IS_KERAS_3, reason="TFRS refuses Keras 3")
def test_two_towers_find_what_those_of_stock_keras_do(script, capsys, tmp_path):
    printed, rows = run(capsys, script("tfrs_retrieval"), "--publish", tmp_path / "published")
    stock, ours = (float(rows[kind][1]) for kind in ("stock tf_keras", "tf_slipstream"))
    assert abs(ours - stock) < 2e-3
    assert ours > 0.55  # at random 100 of 200
    assert re.search(r"published/1 answers for u\d+: i\d+, i\d+, i\d+", printed.replace("\\", "/"))


@pytest.mark.skipif(_compat.IS_KERAS_3, reason="TFRS refuses Keras 3")
def test_ratings_are_predicted(script, capsys):
    _, rows = run(capsys, script("tfrs_ranking"))
    stock, ours = (float(rows[kind][1]) for kind in ("stock tf_keras", "tf_slipstream"))
    assert abs(ours - stock) < 0.02
    assert ours < 0.95 * float(rows["(the mean rating)"][0])


@pytest.mark.skipif(not _compat.IS_KERAS_3, reason="KerasTuner needs Keras 3")
def test_hyperparameters_are_searched(script, capsys, tmp_path):
    _, rows = run(capsys, script("tuning"), "--folder", tmp_path / "search")
    scores = [float(rows[place][-1]) for place in ("1", "2")]
    assert scores == sorted(scores, reverse=True)
    assert {cells[3] for cells in rows.values() if len(cells) == 6} <= {
        "adagrad",
        "adam",
        "table_rate",
    }


USERS, ITEMS = [3, 3, 5], [7, 8, 7]
FILES = {
    "ratings.csv": "userId,movieId,rating,timestamp\n3,7,4.5,20\n3,8,1.0,10\n5,7,3.0,30\n",
    "u.data": "3\t7\t4.5\t20\n3\t8\t1.0\t10\n5\t7\t3.0\t30\n",
    "ratings.dat": "3::7::4.5::20\n3::8::1.0::10\n5::7::3.0::30\n",
}


@pytest.mark.parametrize("name", [*FILES, "ratings.parquet"])
def test_files_of_interactions_are_read(script, tmp_path, name):
    pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    interactions = script("interactions")
    path = tmp_path / name
    if name in FILES:
        path.write_text(FILES[name])
    else:
        import pandas as pd

        columns = {"user": USERS, "item": ITEMS, "rating": [4.5, 1, 3], "timestamp": [20, 10, 30]}
        pd.DataFrame(columns).to_parquet(path)
    found = interactions.read(path)
    np.testing.assert_array_equal(found.users, USERS)
    np.testing.assert_array_equal(found.items, ITEMS)
    np.testing.assert_array_equal(found.ratings, [4.5, 1, 3])
    np.testing.assert_array_equal(found.by_time().items, [8, 7, 7])
    np.testing.assert_array_equal(found.by_user().times, [10, 20, 30])
    assert interactions.as_named(found).items.tolist() == ["i7", "i8", "i7"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("who,what\n1,2\n", "expected a first line with names of columns, or 4 columns"),
        ("user,what\n1,2\n", "expected a column of items, called item or"),
        ("user\n1\n", "expected columns separated by commas"),
        ("", "expected columns separated by commas"),
        ("user,item\n1,2\n3\n", "Expected 2 columns"),
    ],
    ids=["no names", "no items", "one column", "empty", "a line cut off"],
)
def test_a_file_that_is_none_is_refused(script, tmp_path, text, message):
    pytest.importorskip("pyarrow", reason="pyarrow is an extra")
    path = tmp_path / "file.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        script("interactions").read(path)
