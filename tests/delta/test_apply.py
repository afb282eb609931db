"""A base and a delta make what a full export makes; whatever else makes nothing."""

import dataclasses
import json
import os
import shutil

import numpy as np
import pytest
import tensorflow as tf

from tests.export.click_models import DIM, NUM_ROWS, batch, click_model, train
from tests.export.processes import apply_delta, contents
from tf_slipstream import export
from tf_slipstream.delta.atomic import new_folder
from tf_slipstream.delta.sealed_file import SealedFile
from tf_slipstream.delta.version_record import RECORD, read_record

SAME = ["variables/variables.index", "variables/variables.data-00000-of-00001"]


@pytest.fixture
def out(tmp_path):
    (tmp_path / "models").mkdir()
    return tmp_path / "models" / "2"


def assert_refused(result, out, *words):
    """Asserts that a process failed, said why in its only line, and left nothing."""
    assert result.returncode == 1, result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("tf-slipstream apply-delta: error: ")
    for word in words:
        assert word in line
    assert os.listdir(out.parent) == []


def test_the_variables_are_those_of_a_full_export_to_the_byte(published, out):
    result = apply_delta(published.base, published.delta, out)
    assert result.returncode == 0, result.stderr
    applied, full, base = contents(out), contents(published.full[0]), contents(published.base)
    assert set(applied) == set(full)
    for name in SAME:
        assert applied[name] == full[name]
        assert applied[name] != base[name]
    # TensorFlow numbers functions anew in every export, so the graph is that of the base.
    assert applied["saved_model.pb"] == base["saved_model.pb"]


def test_tensorflow_reads_and_runs_the_result(published, out):
    apply_delta(published.base, published.delta, out)
    prefixes = [str(folder / "variables" / "variables") for folder in (out, published.full[0])]
    # Reading checks each tensor's checksum.
    applied, full = map(tf.train.load_checkpoint, prefixes)
    for key in full.get_variable_to_shape_map():
        np.testing.assert_array_equal(applied.get_tensor(key), full.get_tensor(key))
    inputs = {name: tf.constant(value) for name, value in batch(9)[0].items()}
    answers = [
        tf.saved_model.load(str(folder)).signatures["serving_default"](**inputs)["output_0"]
        for folder in (out, published.full[0], published.base)
    ]
    np.testing.assert_array_equal(answers[0], answers[1])
    assert (answers[0].numpy() != answers[2].numpy()).any()


def test_the_fingerprint_is_right_for_the_new_checkpoint(published, out):
    apply_delta(published.base, published.delta, out)
    read = tf.saved_model.experimental.read_fingerprint
    applied, full, base = (read(str(f)) for f in (out, published.full[0], published.base))
    assert applied.checkpoint_hash == full.checkpoint_hash != base.checkpoint_hash
    assert applied.saved_model_checksum == base.saved_model_checksum


def test_every_host_makes_the_same_files(published, tmp_path):
    for name in ("2", "3"):
        assert apply_delta(published.base, published.delta, tmp_path / name).returncode == 0
    assert contents(tmp_path / "2") == contents(tmp_path / "3")


def test_a_result_is_the_base_of_the_next_delta(published, tmp_path):
    second, third = tmp_path / "2", tmp_path / "3"
    assert apply_delta(published.base, published.delta, second).returncode == 0
    assert apply_delta(second, published.second_delta, third).returncode == 0
    assert json.loads((third / RECORD).read_text())["version"] == 3
    applied, full = contents(third), contents(published.full[1])
    for name in SAME:
        assert applied[name] == full[name]


def test_unchanged_files_are_linked_and_others_kept(published, tmp_path):
    base, out = tmp_path / "1", tmp_path / "2"
    shutil.copytree(published.base, base)
    (base / "assets" / "words.txt").write_text("of the user")
    (base / "assets.extra" / "requests").write_text("for warming up")
    assert apply_delta(base, published.delta, out).returncode == 0
    assert (out / "assets" / "words.txt").samefile(base / "assets" / "words.txt")
    assert (out / "assets.extra" / "requests").read_text() == "for warming up"
    assert not (out / SAME[1]).samefile(base / SAME[1])


@pytest.mark.parametrize("num_rows", [1, 33])
def test_first_last_and_neighbouring_rows(num_rows, tmp_path):
    model = click_model(num_rows=num_rows)
    export.DeltaTracker(model)
    export.save_version(model, tmp_path / "1")
    inputs, labels = batch(0, num_rows=num_rows)
    inputs["user"][:] = (
        np.resize([0, num_rows - 1, num_rows // 2, num_rows // 2 + 1], 16) % num_rows
    )
    model.train_on_batch(inputs, labels)
    saved = export.save_delta(model, 1, tmp_path / "delta")
    export.save_version(model, tmp_path / "3")
    # In this process, where the tables are copied in parts of one row.
    export.apply_delta(tmp_path / "1", tmp_path / "delta", tmp_path / "2")
    assert len(saved.num_rows) == 2
    for name in SAME:
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "3" / name).read_bytes()


def test_tables_are_copied_in_parts(published, out, monkeypatch):
    from tf_slipstream.delta import patched_copy

    monkeypatch.setattr(patched_copy, "_BUFFER_BYTES", 3 * 4 * DIM)
    monkeypatch.setattr(patched_copy, "_PART_BYTES", 70 * 4 * DIM)
    export.apply_delta(published.base, published.delta, out)
    for name in SAME:
        assert (out / name).read_bytes() == (published.full[0] / name).read_bytes()


def test_nothing_changed_makes_a_version_too(tmp_path):
    model = click_model()
    export.DeltaTracker(model)
    export.save_version(model, tmp_path / "1")
    saved = export.save_delta(model, 1, tmp_path / "delta")
    assert saved.num_rows == {}
    export.apply_delta(tmp_path / "1", tmp_path / "delta", tmp_path / "2")
    for name in SAME:
        assert (tmp_path / "2" / name).read_bytes() == (tmp_path / "1" / name).read_bytes()


def test_a_delta_of_another_base_is_refused(published, out):
    result = apply_delta(published.full[0], published.delta, out)
    assert_refused(result, out, "changes version 1", "is version 102")
    assert_refused(apply_delta(published.base, published.second_delta, out), out, "version 2")


def test_an_export_without_record_is_refused(published, tmp_path, out):
    base = tmp_path / "base"
    shutil.copytree(published.base, base)
    (base / RECORD).unlink()
    assert_refused(apply_delta(base, published.delta, out), out, "save_version")
    assert_refused(apply_delta(tmp_path, published.delta, out), out, "not a SavedModel")


def test_an_existing_target_is_left_alone(published, out):
    out.mkdir()
    (out / "kept").write_text("kept")
    result = apply_delta(published.base, published.delta, out)
    assert result.returncode == 1
    assert "exists already" in result.stderr
    assert contents(out) == {"kept": b"kept"}
    assert os.listdir(out.parent) == ["2"]


def test_a_missing_parent_is_refused(published, tmp_path):
    result = apply_delta(published.base, published.delta, tmp_path / "none" / "2")
    assert result.returncode == 1
    assert "make it first" in result.stderr
    assert os.listdir(tmp_path) == []


def places(path):
    """Returns a place in each part of a sealed file: dict from the part's name to an offset."""
    file = SealedFile(path, "delta")
    offsets, offset = {"magic": 3}, 8
    for name, num_bytes in file.section_sizes.items():
        offsets[name] = offset + num_bytes // 2
        offset += num_bytes
    size = path.stat().st_size
    return offsets | {"header": offset + 5, "digest": size - 40, "size": size - 10, "end": size - 3}


def test_a_flipped_bit_is_refused_wherever_it_is(published, tmp_path, out):
    delta, data = tmp_path / "delta", published.delta.read_bytes()
    for part, place in places(published.delta).items():
        for bit in (0, 7):
            damaged = bytearray(data)
            damaged[place] ^= 1 << bit
            delta.write_bytes(damaged)
            with pytest.raises(export.ExportError, match="intact delta"):
                export.apply_delta(published.base, delta, out)
            assert os.listdir(out.parent) == [], part
    assert_refused(apply_delta(published.base, delta, out), out, "not an intact delta")


def test_a_delta_that_is_cut_off_is_refused(published, tmp_path, out):
    delta, data = tmp_path / "delta", published.delta.read_bytes()
    for size in [0, 1, 7, 8, 30, 48, 56, 57, len(data) // 2, len(data) - 49, len(data) - 1]:
        delta.write_bytes(data[:size])
        with pytest.raises(export.ExportError, match="intact delta"):
            export.apply_delta(published.base, delta, out)
    delta.write_bytes(data + b"\0")
    assert_refused(apply_delta(published.base, delta, out), out, "not an intact delta")


@pytest.mark.parametrize("name", SAME)
def test_a_base_that_is_cut_off_or_altered_is_refused(name, published, tmp_path, out):
    base = tmp_path / "base"
    shutil.copytree(published.base, base)
    data = (base / name).read_bytes()
    (base / name).write_bytes(data[:-1])
    assert_refused(apply_delta(base, published.delta, out), out, name.split("/")[-1])
    (base / name).unlink()
    assert_refused(apply_delta(base, published.delta, out), out, name.split("/")[-1])


def test_a_flipped_bit_in_the_index_of_the_base_is_refused(published, tmp_path, out):
    base = tmp_path / "base"
    shutil.copytree(published.base, base)
    data = (base / SAME[0]).read_bytes()
    for place in range(0, len(data), 7):
        (base / SAME[0]).write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(export.ExportError):
            export.apply_delta(base, published.delta, out)
    assert os.listdir(out.parent) == []


def test_another_shape_is_refused(published, tmp_path, out):
    base = tmp_path / "base"
    model = click_model(num_rows=NUM_ROWS + 1)
    export.save_version(model, base, version=1)
    # A record that claims to be that of the delta's base.
    dataclasses.replace(read_record(base), id=read_record(published.base).id).write(base)
    assert_refused(apply_delta(base, published.delta, out), out, "[1001, 5]", "[1000, 5]")


def test_a_full_disk_leaves_nothing(published, out):
    # A limit on the size of files does what a full disk does, in the middle of a write.
    before = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))"
    assert_refused(apply_delta(published.base, published.delta, out, before=before), out, "large")


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGTERM"])
def test_a_killed_process_leaves_nothing_that_is_served(signal, published, out):
    before = f"import os, signal; os.rename = lambda *_: os.kill(os.getpid(), signal.{signal})"
    assert apply_delta(published.base, published.delta, out, before=before).returncode < 0
    (left,) = os.listdir(out.parent)
    assert left.startswith(".2.partial-")
    # The next one clears it away.
    assert apply_delta(published.base, published.delta, out).returncode == 0
    assert os.listdir(out.parent) == ["2"]


def test_two_that_make_the_same_version_replace_nothing(published, out):
    with pytest.raises(export.ExportError, match="exists already"), new_folder(out) as folder:
        (folder / "made by").write_text("the slower")
        export.apply_delta(published.base, published.delta, out)
    assert not (out / "made by").exists()
    for name in SAME:
        assert (out / name).read_bytes() == (published.full[0] / name).read_bytes()
    assert os.listdir(out.parent) == ["2"]


def test_a_failure_while_publishing_marks_nothing(tmp_path):
    model = click_model()
    tracker = export.DeltaTracker(model, tmp_path / "marks")
    export.save_version(model, tmp_path / "1")
    train(model, 1)
    before = tracker.changed_rows(1)
    (tmp_path / "delta").write_text("in the way")
    with pytest.raises(export.ExportError, match="exists already"):
        export.save_delta(model, 1, tmp_path / "delta")
    with pytest.raises(export.ExportError, match="exists already"):
        export.save_version(model, tmp_path / "1")
    assert tracker.versions == [1]
    assert len(os.listdir(tmp_path / "marks")) == 1
    after = tracker.changed_rows(1)
    assert {name: ids.tolist() for name, ids in before.items()} == {
        name: ids.tolist() for name, ids in after.items()
    }
