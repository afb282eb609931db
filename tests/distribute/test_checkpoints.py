"""A checkpoint cut off half-way."""

import time

import pytest
import tensorflow as tf

from tf_slipstream.distribute.checkpoints import StepCheckpoints, _reason

_SAVES = """
import sys
import tensorflow as tf
from tf_slipstream.distribute.checkpoints import StepCheckpoints

checkpoints = StepCheckpoints(sys.argv[1], [tf.Variable(tf.fill([1 << 24], 1.0))])
checkpoints.save(1)
while True:
    checkpoints.save(int(checkpoints._step) + 1)
"""


def test_one_that_is_cut_off_replaces_no_good_one(forks, tmp_path):
    program = tmp_path / "saves.py"
    program.write_text(_SAVES)
    folder = tmp_path / "checkpoints"
    process = forks.start([program, folder], tmp_path / "log")
    deadline = time.monotonic() + 60
    while True:
        assert time.monotonic() < deadline and process.poll() is None, (
            tmp_path / "log"
        ).read_text()
        # Once there is a good one, and the next is being written.
        latest = tf.train.latest_checkpoint(folder) if folder.exists() else None
        unfinished = list(folder.glob("*_temp*")) + list(folder.glob("*.tempstate*"))
        if latest is not None and unfinished:
            break
    process.kill()
    table = tf.Variable(tf.zeros([1 << 24]))
    step = StepCheckpoints(folder, [table]).restore()
    assert step >= 1
    assert bool(tf.reduce_all(table == 1.0))


def test_the_last_ones_are_kept_and_a_step_is_saved_once(tmp_path):
    table = tf.Variable([1.0, 2.0])
    checkpoints = StepCheckpoints(tmp_path, [table], num_kept=2)
    for step in (10, 20, 20, 30):
        table.assign([step, step])
        checkpoints.save(step)
    assert sorted(path.name for path in tmp_path.glob("*.index")) == [
        "ckpt-20.index",
        "ckpt-30.index",
    ]
    restored = tf.Variable([0.0, 0.0])
    assert StepCheckpoints(tmp_path, [restored]).restore() == 30
    assert restored.numpy().tolist() == [30, 30]


def test_without_any_nothing_is_restored(tmp_path):
    assert StepCheckpoints(tmp_path, [tf.Variable(1.0)]).restore() == 0


@pytest.mark.parametrize(
    "others, message",
    [
        (
            [tf.zeros([2, 3]), tf.zeros([1, 3])],
            r"'v1' is float32 \[2, 3\] there and float32 \[1, 3\]",
        ),
        ([tf.zeros([2, 3]), tf.zeros([2, 3], tf.int64)], "'v1' is float32 .* there and int64 "),
        ([tf.zeros([2, 3])], "it has 2 variables and here are 1; 'v1' is .* there and not here"),
        (
            [tf.zeros([2, 3])] * 3,
            "it has 2 variables and here are 3; 'v2' is not there and float32",
        ),
    ],
)
def test_one_of_other_variables_is_refused_with_what_to_do(tmp_path, others, message):
    StepCheckpoints(tmp_path, [tf.Variable(tf.ones([2, 3])) for _ in range(2)]).save(5)
    variables = [tf.Variable(one) for one in others]
    with pytest.raises(ValueError, match=message) as error:
        StepCheckpoints(tmp_path, variables).restore()
    assert "as many parameter servers and workers" in str(error.value)
    assert not any(tf.reduce_any(one != 0) for one in variables)


def test_one_that_cannot_be_written_is_said_and_may_be_written_later(tmp_path):
    folder, table = tmp_path / "checkpoints", tf.Variable([1.0])
    checkpoints = StepCheckpoints(folder, [table])
    checkpoints.save(10)
    folder.rename(tmp_path / "elsewhere")
    folder.write_text("a file is in the way")
    with pytest.raises(RuntimeError, match=rf"step 20 .* {folder}: .*ckpt-10. See that each"):
        checkpoints.save(20)
    folder.unlink()
    (tmp_path / "elsewhere").rename(folder)
    table.assign([2.0])
    checkpoints.save(20)
    restored = tf.Variable([0.0])
    assert StepCheckpoints(folder, [restored]).restore() == 20
    assert restored.numpy().tolist() == [2.0]


def test_what_is_half_written_when_the_disk_is_full_is_taken_away(tmp_path, monkeypatch):
    checkpoints = StepCheckpoints(tmp_path, [tf.Variable([1.0])])
    checkpoints.save(2)
    whole = sorted(path.name for path in tmp_path.iterdir())

    def fail(*args, **kwargs):
        (tmp_path / "ckpt-20_temp").mkdir()
        (tmp_path / "ckpt-20_temp" / "part-0").touch()
        (tmp_path / "ckpt-20.data-00000-of-00001.tempstate7").touch()
        raise tf.errors.ResourceExhaustedError(None, None, f"{tmp_path}/part-0; No space left")

    monkeypatch.setattr(checkpoints._manager, "save", fail)
    with pytest.raises(RuntimeError, match="part-0; No space left"):
        checkpoints.save(20)
    assert sorted(path.name for path in tmp_path.iterdir()) == whole


@pytest.mark.parametrize(
    "message",
    [
        "/ckpt/a.tempstate; No space left on device",
        "An error:\n\n  (0) X:  /ckpt/a.tempstate; No space left on device\n\t [[save]]",
        'one error\n{grpc_message:" /ckpt/a.tempstate; No space left on device\\n\\t [[save]]"}',
    ],
)
def test_the_reason_is_found_in_what_tensorflow_says(message):
    assert _reason(message, "/ckpt") == "/ckpt/a.tempstate; No space left on device"


def test_another_reason_is_the_first_line():
    assert _reason("\nall is lost.\nmore", "/ckpt") == "all is lost"


def test_variables_are_read_one_after_the_other(tmp_path, monkeypatch):
    """Else a server needs its memory twice."""
    StepCheckpoints(tmp_path, [tf.Variable([1.0, 2.0]), tf.Variable([[3]])]).save(5)
    variables, read, names = [tf.Variable([0.0, 0.0]), tf.Variable([[0]])], tf.raw_ops.RestoreV2, []

    def restore(**kwargs):
        names.append(kwargs["tensor_names"])
        return read(**kwargs)

    monkeypatch.setattr(tf.raw_ops, "RestoreV2", restore)
    assert StepCheckpoints(tmp_path, variables).restore() == 5
    assert [variable.numpy().tolist() for variable in variables] == [[1, 2], [[3]]]
    assert [len(one) for one in names] == [1, 1]
