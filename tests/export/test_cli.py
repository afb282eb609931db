"""The program, as a shell sees it."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.export.click_models import DIM, NUM_ROWS, click_model
from tests.export.processes import apply_delta, command_of_cli, run_cli


def test_help_names_the_commands_and_the_exit_codes():
    result = run_cli("--help")
    assert result.returncode == 0
    for word in ("apply-delta", "inspect", "exit codes"):
        assert word in result.stdout
    for command in ("apply-delta", "inspect"):
        result = run_cli(command, "--help")
        assert result.returncode == 0
        assert f"  tf-slipstream {command}" in result.stdout.partition("example")[2]


def test_the_version_is_that_of_the_package():
    result = run_cli("--version")
    assert (result.returncode, result.stdout.split()[0]) == (0, "tf-slipstream")


@pytest.mark.parametrize(
    "arguments", [[], ["apply-delta"], ["unknown"], ["inspect", "a", "b"], ["inspect", "--nothing"]]
)
def test_wrong_usage_exits_with_2(arguments):
    result = run_cli(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert "usage: tf-slipstream" in result.stderr


@pytest.mark.parametrize("is_module", [True, False], ids=["module", "program"])
def test_it_runs_in_a_process_of_its_own(published, is_module):
    program = [str(pathlib.Path(sys.executable).with_name("tf-slipstream"))]
    command = [sys.executable, "-m", "tf_slipstream.cli"] if is_module else program
    command += ["inspect", "--json", str(published.delta)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["kind"] == "delta"


def test_applying_says_what_it_made(published, tmp_path):
    result = apply_delta(published.base, published.delta, tmp_path / "2")
    assert result.returncode == 0
    assert result.stderr == ""  # no progress where nobody watches
    assert result.stdout.splitlines()[0].startswith(f"{tmp_path / '2'}: version 2, ")
    assert f"user_table/embeddings: {published.num_rows['user_table']} rows" in result.stdout


def test_applying_as_json(published, tmp_path):
    arguments = ["--base", published.base, "--delta", published.delta, "--out", tmp_path / "2"]
    result = run_cli("apply-delta", *arguments, "--json", "--progress")
    found = json.loads(result.stdout)
    assert found["version"] == 2
    assert found["num_rows"]["tag_table/embeddings"] == published.num_rows["tag_table"]
    steps = [line.split(":")[0] for line in result.stderr.splitlines()]
    assert list(dict.fromkeys(steps)) == ["checking", "copying", "waiting for the disk"]


def test_progress_is_shown_on_a_terminal(published, tmp_path):
    ours, theirs = os.openpty()
    command = [*command_of_cli(), "apply-delta", "--base", published.base]
    command += ["--delta", published.delta]
    done = subprocess.run([*map(str, command), "--out", str(tmp_path / "2")], stderr=theirs)
    os.close(theirs)
    shown = os.read(ours, 10_000)
    os.close(ours)
    assert done.returncode == 0
    assert b"copying: " in shown and shown.endswith(b"\r\x1b[K")


def test_a_version_is_described(published):
    found = json.loads(run_cli("inspect", "--json", published.base).stdout)
    assert (found["kind"], found["version"]) == ("saved_model", 1)
    tables = {tensor["table"]: tensor for tensor in found["tensors"] if tensor["table"]}
    assert set(tables) == {"user_table", "tag_table"}
    assert tables["user_table"]["shape"] == [NUM_ROWS, DIM]
    text = run_cli("inspect", published.base).stdout
    assert "SavedModel, version 1" in text
    assert "1,000 rows of 5  table user_table" in text


def test_a_delta_is_described(published):
    found = json.loads(run_cli("inspect", "--json", published.delta).stdout)
    assert (found["base"]["version"], found["result"]["version"]) == (1, 2)
    changes = {
        tensor["name"]: (tensor["change"], tensor["num_rows"]) for tensor in found["tensors"]
    }
    assert changes["user_table/embeddings"] == ("rows", published.num_rows["user_table"])
    assert changes["output/kernel"] == ("whole", 0)
    text = run_cli("inspect", published.delta).stdout
    assert "delta from version 1 to version 2" in text
    assert f"table user_table  {published.num_rows['user_table']} rows changed" in text


def test_a_training_checkpoint_is_described(tmp_path):
    model = click_model()
    prefix = tf.train.Checkpoint(model=model, optimizer=model.optimizer).save(str(tmp_path / "c"))
    for path in (prefix, f"{prefix}.index"):
        found = json.loads(run_cli("inspect", "--json", path).stdout)
        assert found["kind"] == "checkpoint"
        assert [NUM_ROWS, DIM] in [tensor["shape"] for tensor in found["tensors"]]
        assert {tensor["key"] for tensor in found["tensors"]} == {
            name for name, _ in tf.train.list_variables(prefix)
        } - {"_CHECKPOINTABLE_OBJECT_GRAPH"}
    assert "1,000 rows of 5" in run_cli("inspect", prefix).stdout


def test_a_stock_export_is_described(tmp_path):
    module = tf.Module()
    module.variable = tf.Variable(np.zeros([3, 2], "float32"))
    tf.saved_model.save(module, str(tmp_path / "m"))
    found = json.loads(run_cli("inspect", "--json", tmp_path / "m").stdout)
    assert [(t["name"], t["shape"]) for t in found["tensors"]] == [("variable", [3, 2])]
    assert "version" not in found


@pytest.mark.parametrize("text", [None, "", "SLIPSTRM", "something else"])
def test_what_is_none_of_these_is_refused(text, tmp_path):
    path = tmp_path / "file"
    if text is not None:
        path.write_text(text)
    for one in (path, tmp_path):
        result = run_cli("inspect", one)
        assert (result.returncode, result.stdout) == (1, "")
        (line,) = result.stderr.splitlines()
        assert line.startswith("tf-slipstream inspect: error: ")
