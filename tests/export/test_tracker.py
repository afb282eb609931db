"""The tracker never misses a row, whatever was saved, restored or published in between."""

import os

import numpy as np
import pytest
import tensorflow as tf

from tests.delta.damage import header_of, sealed
from tests.export.click_models import NUM_ROWS, click_model, train
from tests.models import embedding_of, random_table, slices
from tf_slipstream import SlipstreamOptimizer, export
from tf_slipstream._compat import keras
from tf_slipstream.delta.sealed_file import SealedFile

DIM = 2


class Training:
    """Training of one table by single steps, and what a tracker should say of it."""

    def __init__(
        self, directory, num_rows=70, seed=0, inner=keras.optimizers.Adam, max_versions=200
    ):
        self.directory, self.num_rows, self.inner = directory, num_rows, inner
        self.max_versions = max_versions
        self.rng = np.random.default_rng(seed)
        self.published = {}  # by version, the table's values
        self.saved = {}
        self.start()

    def start(self):
        """Begins as a process does: a new model, optimizer and tracker on the same directory."""
        self.layer = embedding_of(random_table(self.num_rows, DIM), name="user")
        self.optimizer = SlipstreamOptimizer(self.inner(0.1))
        self.optimizer.build(self.layer.trainable_variables)
        self.tracker = export.DeltaTracker(
            self.optimizer, self.directory, max_versions=self.max_versions
        )

    @property
    def values(self):
        """The table, after what rows are behind by is applied."""
        self.optimizer.settle()
        return self.layer.get_weights()[0]

    def step(self):
        ids = self.rng.integers(self.num_rows, size=self.rng.integers(1, 6))
        grads = self.rng.normal(size=[len(ids), DIM])
        pair = (slices(ids, grads, self.num_rows), self.layer.trainable_variables[0])
        self.optimizer.apply_gradients([pair])
        return set(ids.tolist())

    def publish(self):
        version = len(self.published) + 1
        self.optimizer.settle()  # as `save_version` and `save_delta` do
        with self.tracker.publication(version, (), {}):
            self.published[version] = self.values
        return version

    def checkpoint(self):
        return tf.train.Checkpoint(layer=self.layer, optimizer=self.optimizer)

    def save(self, path):
        self.checkpoint().write(str(path))

    def restore(self, path):
        self.start()
        self.checkpoint().read(str(path)).assert_existing_objects_matched()

    def assert_no_row_is_missed(self):
        for version, before in self.published.items():
            changed = set(np.flatnonzero((self.values != before).any(axis=1)).tolist())
            said = set(self.tracker.changed_rows(version)["user"].tolist())
            assert changed <= said, (version, changed - said)


@pytest.mark.parametrize("inner", ["Adagrad", "Adam"])
@pytest.mark.parametrize("num_rows", [1, 31, 32, 33, 70])
def test_changed_rows_are_exactly_those_written(num_rows, inner, tmp_path, native_or_fallback):
    training = Training(tmp_path, num_rows, inner=getattr(keras.optimizers, inner))
    written = {}
    num_others = 0
    for _ in range(12):
        before = training.values
        looked_up = training.step()
        # Under Adam rows go on moving that were looked up before.
        rows = set(np.flatnonzero((training.values != before).any(axis=1)).tolist())
        assert looked_up <= rows
        num_others += len(rows - looked_up)
        for since in written.values():
            since |= rows
        if training.rng.random() < 0.4:
            written[training.publish()] = set()
        for version, since in written.items():
            assert training.tracker.changed_rows(version)["user"].tolist() == sorted(since)
    assert training.tracker.versions == sorted(written)
    assert (num_others > 0) == (inner == "Adam" and num_rows > 1)


@pytest.mark.parametrize("seed", range(4))
def test_no_row_is_missed_over_random_saves_restores_and_publications(seed, tmp_path):
    training = Training(tmp_path / "marks", seed=seed)
    training.publish()
    checkpoints = []
    for _ in range(60):
        action = training.rng.choice(
            ["step", "publish", "save", "restore"], p=[0.6, 0.15, 0.1, 0.15]
        )
        if action == "restore" and checkpoints:
            training.restore(training.rng.choice(checkpoints))
        elif action == "save":
            checkpoints.append(str(tmp_path / f"checkpoint-{len(checkpoints)}"))
            training.save(checkpoints[-1])
        elif action == "publish":
            training.publish()
        else:
            training.step()
        training.assert_no_row_is_missed()
    assert checkpoints and len(training.published) > 3


def test_rows_undone_by_going_back_are_changes(tmp_path):
    training = Training(tmp_path / "marks")
    training.publish()
    training.save(tmp_path / "checkpoint")
    later = training.step()
    version = training.publish()
    training.restore(tmp_path / "checkpoint")
    # Nothing was trained since then, and yet these rows are not what version 2 has.
    assert training.tracker.changed_rows(version)["user"].tolist() == sorted(later)
    assert training.tracker.changed_rows(1)["user"].tolist() == []


def test_a_crash_between_publishing_and_clearing_loses_nothing(tmp_path):
    training = Training(tmp_path / "marks")
    training.publish()
    rows = training.step()
    training.save(tmp_path / "checkpoint")
    tracker, state = training.tracker, training.tracker.tables["user"]
    publication = tracker.publication(2, (), {})
    publication.__enter__()  # the process is killed in it, after the version has appeared
    training.restore(tmp_path / "checkpoint")
    assert state is not training.tracker.tables["user"]
    assert training.tracker.changed_rows(1)["user"].tolist() == sorted(rows)
    assert training.tracker.changed_rows(2)["user"].tolist() == sorted(rows)


def test_a_publication_that_fails_changes_nothing(tmp_path):
    training = Training(tmp_path / "marks")
    training.publish()
    rows = training.step()
    with pytest.raises(RuntimeError), training.tracker.publication(2, (), {}):
        raise RuntimeError
    assert training.tracker.versions == [1]
    assert training.tracker.changed_rows(1)["user"].tolist() == sorted(rows)


def test_a_state_without_known_mark_is_refused(tmp_path):
    training = Training(tmp_path / "marks")
    training.step()
    training.publish()
    training.start()  # and nothing is restored
    with pytest.raises(export.ExportError, match="no mark of"):
        training.tracker.changed_rows(1)
    with pytest.raises(export.ExportError, match=r"version 7 .* knows \[1\]"):
        training.tracker.changed_rows(7)


def test_an_altered_mark_is_refused(tmp_path):
    training = Training(tmp_path)
    training.publish()
    (path,) = tmp_path.glob("*.mark")
    data = bytearray(path.read_bytes())
    data[10] ^= 1
    path.write_bytes(data)
    assert SealedFile(path, "mark").header  # the header is fine, the bitmap is not
    with pytest.raises(export.ExportError, match="intact mark"):
        training.start()


MALFORMED_MARKS = {
    "no mark": lambda header: header.pop("mark"),
    "unknown field": lambda header: header["mark"].update(extra=1),
    "id as a text": lambda header: header["mark"].update(id="1"),
    "parents as a list": lambda header: header["mark"].update(parents=[]),
    "another table": lambda header: header["mark"].update(parents={"item": 0}),
    "tensors of nothing": lambda header: header["mark"].update(tensors=[{}]),
}


@pytest.mark.parametrize("alter", MALFORMED_MARKS.values(), ids=MALFORMED_MARKS)
def test_a_malformed_mark_is_refused(alter, tmp_path):
    training = Training(tmp_path)
    training.publish()
    (path,) = tmp_path.glob("*.mark")
    header, sections = header_of(path.read_bytes())
    alter(header)
    path.write_bytes(sealed(header, sections))
    with pytest.raises(export.ExportError, match="not an intact mark"):
        training.start()


def test_a_mark_of_another_number_of_rows_is_refused(tmp_path):
    training = Training(tmp_path, num_rows=70)
    training.publish()
    training.publish()
    other = Training(tmp_path, num_rows=7)
    other.tracker.tables["user"].set_mark_id(other.tracker.mark_of(2).id)
    with pytest.raises(export.ExportError, match="has 7 rows, and had another number"):
        other.tracker.changed_rows(1)


def test_marks_of_old_versions_are_removed(tmp_path):
    training = Training(tmp_path / "marks", max_versions=3)
    for _ in range(6):
        training.step()
        training.publish()
        assert len(os.listdir(tmp_path / "marks")) == min(3, len(training.published))
    assert training.tracker.versions == [4, 5, 6]
    with pytest.raises(export.ExportError, match=r"too long ago for .* \[4, 5, 6\]"):
        training.tracker.changed_rows(3)
    training.published = {version: training.published[version] for version in (4, 5, 6)}
    training.step()
    training.assert_no_row_is_missed()
    # A later process that keeps more goes on with those.
    training.save(tmp_path / "checkpoint")
    training.max_versions = 200
    training.restore(tmp_path / "checkpoint")
    training.step()
    training.assert_no_row_is_missed()
    training.publish()
    assert len(os.listdir(tmp_path / "marks")) == 4


def test_going_back_before_the_oldest_mark_is_refused_and_not_wrong(tmp_path):
    training = Training(tmp_path / "marks", max_versions=2)
    training.publish()
    training.save(tmp_path / "checkpoint")
    for _ in range(3):
        training.step()
        training.publish()
    training.restore(tmp_path / "checkpoint")
    with pytest.raises(export.ExportError, match="no mark of"):
        training.tracker.changed_rows(4)


def test_a_publication_that_fails_removes_no_mark(tmp_path):
    training = Training(tmp_path, max_versions=1)
    training.publish()
    with pytest.raises(RuntimeError), training.tracker.publication(2, (), {}):
        raise RuntimeError
    assert training.tracker.versions == [1]


@pytest.mark.parametrize("max_versions", [0, -1, 1.5, None])
def test_at_least_one_version_is_kept(max_versions, tmp_path):
    with pytest.raises(ValueError, match="`max_versions` must be a positive integer"):
        Training(tmp_path, max_versions=max_versions)


def test_what_no_step_did_can_be_noted(tmp_path):
    training = Training(tmp_path)
    training.publish()
    training.tracker.mark_rows("user", [69, 0, 33, 33])
    assert training.tracker.changed_rows(1)["user"].tolist() == [0, 33, 69]
    training.tracker.mark_all("user")
    assert training.tracker.changed_rows(1)["user"].tolist() == list(range(70))
    training.publish()
    training.tracker.mark_all()
    assert len(training.tracker.changed_rows(2)["user"]) == 70
    with pytest.raises(ValueError, match=r"must be one of \['user'\], got 'item'"):
        training.tracker.mark_all("item")
    with pytest.raises(ValueError, match=r"must be in \[0, 70\), got 3 to 70"):
        training.tracker.mark_rows("user", [3, 70])


def test_a_tracker_needs_our_optimizer():
    with pytest.raises(ValueError, match="SlipstreamOptimizer"):
        export.DeltaTracker(keras.optimizers.SGD())


def test_a_tracker_finds_the_optimizer_under_loss_scaling():
    optimizer = SlipstreamOptimizer(keras.optimizers.SGD(0.1))
    scaling = getattr(keras.mixed_precision, "LossScaleOptimizer", None)
    scaled = (scaling or keras.optimizers.LossScaleOptimizer)(optimizer)
    tracker = export.DeltaTracker(scaled)
    assert tracker.tables == {}
    layer = embedding_of(random_table(4, DIM), name="user")
    optimizer.build(layer.trainable_variables)
    assert set(tracker.tables) == {"user"}


def test_a_later_process_goes_on_from_a_saved_model(tmp_path):
    model = click_model()
    tracker = export.DeltaTracker(model, tmp_path / "marks")
    train(model, 0)
    export.save_version(model, tmp_path / "1")
    train(model, 1)
    model.optimizer.settle()  # as saving does
    before = tracker.changed_rows(1)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    tracker = export.DeltaTracker(loaded, tmp_path / "marks")
    assert {n: ids.tolist() for n, ids in tracker.changed_rows(1).items()} == {
        n: ids.tolist() for n, ids in before.items()
    }
    export.save_delta(loaded, 1, tmp_path / "delta")
    export.apply_delta(tmp_path / "1", tmp_path / "delta", tmp_path / "2")
    export.save_version(model, tmp_path / "3")
    for name in ("variables.index", "variables.data-00000-of-00001"):
        applied, full = (tmp_path / n / "variables" / name for n in ("2", "3"))
        assert applied.read_bytes() == full.read_bytes()


def test_comparing_with_the_folder_sees_what_no_step_did(tmp_path):
    model = click_model()
    export.DeltaTracker(model)
    export.save_version(model, tmp_path / "1")
    (layer,) = (one for one in model.layers if one.name == "user_table")
    table = layer.get_weights()[0]
    table[[0, 7, NUM_ROWS - 1]] += 1
    layer.set_weights([table])
    unseen = export.save_delta(model, 1, tmp_path / "unseen")
    assert unseen.num_rows == {}
    seen = export.save_delta(model, tmp_path / "1", tmp_path / "seen")
    assert seen.num_rows == {"user_table/embeddings": 3}
    # From now on the tracker knows as well.
    again = export.save_delta(model, 1, tmp_path / "again")
    assert again.num_rows == {"user_table/embeddings": 3}
    export.apply_delta(tmp_path / "1", tmp_path / "seen", tmp_path / "2")
    reader = tf.train.load_checkpoint(str(tmp_path / "2" / "variables" / "variables"))
    np.testing.assert_array_equal(
        reader.get_tensor("model_variables/0/.ATTRIBUTES/VARIABLE_VALUE"), table
    )


def test_a_model_without_tracker_can_be_compared_only(tmp_path):
    model = click_model()
    export.save_version(model, tmp_path / "1")
    train(model, 1)
    with pytest.raises(export.ExportError, match="make a DeltaTracker"):
        export.save_delta(model, 1, tmp_path / "delta")
    saved = export.save_delta(model, tmp_path / "1", tmp_path / "delta")
    assert (saved.base_version, saved.version) == (1, 2)
    assert 0 < saved.num_rows["user_table/embeddings"] <= 16


def test_a_model_of_other_variables_is_refused(tmp_path):
    model = click_model()
    tracker = export.DeltaTracker(model)
    export.save_version(model, tmp_path / "1")
    other = click_model(num_rows=NUM_ROWS + 1)
    for base in (1, tmp_path / "1"):
        with pytest.raises(export.ExportError, match="are not those of"):
            export.save_delta(other, base, tmp_path / "delta", tracker=tracker)
