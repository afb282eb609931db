"""A version, a delta and the full version that the delta must lead to, made once."""

import dataclasses
import pathlib

import pytest

from tests.export.click_models import NUM_ROWS, click_model, train
from tests.export.processes import ServingProcess
from tf_slipstream import export
from tf_slipstream._compat import keras


@dataclasses.dataclass(frozen=True)
class Published:
    """What was published. Tests read it and write elsewhere.

    Attributes:
        folder: Where all is.
        base: Version 1.
        delta: From version 1 to 2.
        second_delta: From version 2 to 3.
        full: Full versions made at the steps of versions 2 and 3.
        num_rows: Rows in the first delta, by table.
    """

    folder: pathlib.Path
    base: pathlib.Path
    delta: pathlib.Path
    second_delta: pathlib.Path
    full: tuple
    num_rows: dict


@pytest.fixture(scope="session")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("published")
    base, delta, second = folder / "1", folder / "d2", folder / "d3"
    model = click_model(keras.optimizers.Adam(0.1))
    train(model, 0, 1)
    tracker = export.DeltaTracker(model, folder / "marks")
    export.save_version(model, base)
    train(model, 2, 3)
    model.optimizer.settle()  # as publishing does
    num_rows = {name: len(ids) for name, ids in tracker.changed_rows(1).items()}
    export.save_delta(model, 1, delta)
    full = folder / "102", folder / "103"
    export.save_version(model, full[0])
    train(model, 4)
    export.save_delta(model, 2, second, version=3)
    export.save_version(model, full[1])
    assert all(0 < count < NUM_ROWS / 2 for count in num_rows.values())
    return Published(folder, base, delta, second, full, num_rows)


@pytest.fixture(scope="session")
def elsewhere(tmp_path_factory):
    """Returns a `ServingProcess`."""
    process = ServingProcess(tmp_path_factory.mktemp("elsewhere"))
    yield process
    process.close()
