"""A damaged base is refused before anything is made of it, wherever the damage is."""

import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.delta.damage import flip_bit, pack_strings
from tests.export.click_models import DIM, NUM_ROWS
from tests.export.processes import contents, run_cli
from tf_slipstream import export
from tf_slipstream.delta.inspection import inspect
from tf_slipstream.delta.tensor_index import TensorIndex
from tf_slipstream.delta.verification import verify_tensors
from tf_slipstream.delta.version_record import RECORD, read_record

DATA = "variables/variables.data-00000-of-00001"
NUM_FLIPS = 40


@pytest.fixture
def base(published, tmp_path):
    """Returns a copy of the base, to be damaged."""
    shutil.copytree(published.base, tmp_path / "base")
    return tmp_path / "base"


@pytest.mark.parametrize(
    "name",
    [DATA, "variables/variables.index", "saved_model.pb", "fingerprint.pb", RECORD.as_posix()],
)
def test_a_flipped_bit_is_refused_wherever_it_is(name, published, base, tmp_path):
    size = (base / name).stat().st_size
    rng = np.random.default_rng(0)
    places = {0, size - 1, *rng.integers(size, size=NUM_FLIPS).tolist()}
    for place in places:
        with flip_bit(base / name, place, int(rng.integers(8))):
            with pytest.raises(export.ExportError, match=name.rpartition("/")[2]):
                export.apply_delta(base, published.delta, tmp_path / "2")
            with pytest.raises(export.ExportError, match=name.rpartition("/")[2]):
                inspect(base)
        assert not (tmp_path / "2").exists()
    export.apply_delta(base, published.delta, tmp_path / "2")
    assert inspect(base)["unverified"] == []


def test_the_program_refuses_it_in_one_line(published, base, tmp_path):
    arguments = ["--base", base, "--delta", published.delta, "--out", tmp_path / "2"]
    with flip_bit(base / DATA, 4 * DIM * NUM_ROWS // 2, 3):
        for result in (run_cli("apply-delta", *arguments), run_cli("inspect", base)):
            assert result.returncode == 1
            (line,) = result.stderr.splitlines()
            assert "was altered" in line and "checksum" in line
    assert sorted(os.listdir(tmp_path)) == ["base"]


def test_without_verifying_what_is_damaged_stays_so_and_tensorflow_refuses_it(
    published, base, tmp_path
):
    out = tmp_path / "2"
    arguments = ["--base", base, "--delta", published.delta, "--out", out, "--no-verify"]
    with flip_bit(base / DATA, 4 * DIM * NUM_ROWS // 2 + 1, 2):
        result = run_cli("apply-delta", *arguments)
        assert result.returncode == 0, result.stderr
        assert "not verified: --no-verify" in result.stdout
        assert "not verified: --no-verify" in run_cli("inspect", "--no-verify", base).stdout
    reader = tf.train.load_checkpoint(str(out / "variables" / "variables"))
    with pytest.raises(Exception, match="[Cc]hecksum"):
        for key in reader.get_variable_to_shape_map():
            reader.get_tensor(key)
    with pytest.raises(export.ExportError, match="was altered"):
        inspect(out)


def test_a_result_can_be_verified_as_its_base_could(published, tmp_path):
    done = export.apply_delta(published.base, published.delta, tmp_path / "2")
    assert (done.is_verified, done.unverified) == (True, ())
    described = inspect(tmp_path / "2")
    assert (described["is_verified"], described["unverified"]) == (True, [])
    assert set(read_record(tmp_path / "2").files) == set(read_record(published.base).files)


def test_a_missing_file_is_refused(published, base, tmp_path):
    for name in ("saved_model.pb", "fingerprint.pb"):
        data = (base / name).read_bytes()
        (base / name).unlink()
        with pytest.raises(export.ExportError, match=f"{name} is missing"):
            export.apply_delta(base, published.delta, tmp_path / "2")
        (base / name).write_bytes(data)


def test_what_a_user_added_is_kept_and_named(published, base, tmp_path):
    (base / "assets" / "words.txt").write_text("of the user")
    arguments = ["--base", base, "--delta", published.delta, "--out", tmp_path / "2"]
    result = run_cli("apply-delta", *arguments)
    assert "not verified, having no checksum: assets/words.txt" in result.stdout
    assert (tmp_path / "2" / "assets" / "words.txt").read_text() == "of the user"
    assert inspect(tmp_path / "2")["unverified"] == ["assets/words.txt"]


def test_a_record_of_an_earlier_release_is_read_and_its_graph_named(published, base, tmp_path):
    record = json.loads((base / RECORD).read_text())
    del record["files"], record["sha256"]
    (base / RECORD).write_text(json.dumps(record | {"format": 1}))
    done = export.apply_delta(base, published.delta, tmp_path / "2")
    assert done.unverified == ("fingerprint.pb", "saved_model.pb")
    full = contents(published.full[0])
    assert contents(tmp_path / "2")[DATA] == full[DATA]
    with flip_bit(base / DATA, 17, 0), pytest.raises(export.ExportError, match="was altered"):
        export.apply_delta(base, published.delta, tmp_path / "3")


def test_a_stock_export_has_checksums_of_its_variables_alone(tmp_path):
    module = tf.Module()
    module.variable = tf.Variable(np.ones([3, 2], "float32"))
    tf.saved_model.save(module, str(tmp_path / "m"))
    assert inspect(tmp_path / "m")["unverified"] == ["fingerprint.pb", "saved_model.pb"]
    assert "saved_model.pb" in run_cli("inspect", tmp_path / "m").stdout
    with flip_bit(tmp_path / "m" / DATA, 5, 1), pytest.raises(export.ExportError, match="altered"):
        inspect(tmp_path / "m")


STRINGS = {
    "none": [],
    "empty": [""],
    "short": ["a", "", "bc"],
    "long": ["x" * 127, "y" * 128, "z" * 70_000],
    "scalar": "one",
}


@pytest.fixture
def checkpoint(tmp_path):
    """Returns the prefix of a checkpoint of many types and shapes."""
    values = {
        "bool": np.array([True, False, True]),
        "empty_table": np.zeros([0, 4], "float32"),
        "half": tf.ones([5], tf.bfloat16),
        "long": np.arange(30_000, dtype="int64"),
        "scalar": np.float64(1.5),
        **{f"string_{name}": tf.constant(value, tf.string) for name, value in STRINGS.items()},
    }
    variables = {name: tf.Variable(value) for name, value in values.items()}
    return tf.train.Checkpoint(**variables).write(str(tmp_path / "checkpoint"))


def test_every_type_has_the_checksum_that_tensorflow_wrote(checkpoint):
    index = TensorIndex(f"{checkpoint}.index")
    assert {entry.dtype for entry in index.entries.values()} >= {"string", "bool", "bfloat16"}
    assert verify_tensors(index) == []


def test_a_flipped_bit_of_any_tensor_is_seen(checkpoint):
    index = TensorIndex(f"{checkpoint}.index")
    rng = np.random.default_rng(0)
    for entry in index.entries.values():
        places = entry.offset + rng.integers(max(1, entry.size), size=min(10, entry.size))
        for place in {entry.offset, *places.tolist()} if entry.size else ():
            with flip_bit(index.data_path(0), place, int(rng.integers(8))):
                with pytest.raises(export.ExportError) as error:
                    verify_tensors(index)
                assert entry.key in str(error.value)


def test_lengths_that_make_no_sense_are_refused(checkpoint):
    """A checksum cannot be right by chance: the lengths are looked at before it."""
    index = TensorIndex(f"{checkpoint}.index")
    (entry,) = (entry for key, entry in index.entries.items() if key.startswith("string_short"))
    for lengths in ([1, 0, 3], [1 << 62, 0, 2], [0x80]):
        data = pack_strings(lengths, entry.size)
        with open(index.data_path(0), "r+b") as file:
            file.seek(entry.offset)
            file.write(data)
        with pytest.raises(export.ExportError, match="string_short"):
            verify_tensors(index)


def test_slices_are_verified_too(tmp_path):
    slices = [tf.constant([[1.0, 2.0]]), tf.constant([[3.0, 4.0], [5.0, 6.0]])]
    prefix = str(tmp_path / "sliced")
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=["table", "table"],
        shape_and_slices=["3 2 0,1:0,2", "3 2 1,2:0,2"],
        tensors=slices,
    )
    index = TensorIndex(f"{prefix}.index")
    assert index.entries["table"].is_sliced and len(index.slices) == 2
    assert verify_tensors(index) == []
    for place in range(24):
        with flip_bit(index.data_path(0), place, 0):
            with pytest.raises(export.ExportError, match="was altered"):
                verify_tensors(index)


def test_a_delta_is_not_made_against_a_damaged_folder(published, base, tmp_path):
    from tests.export.click_models import click_model

    with flip_bit(base / DATA, 100, 0):
        with pytest.raises(export.ExportError, match="was altered"):
            export.save_delta(click_model(), base, tmp_path / "delta")
    assert not (tmp_path / "delta").exists()
