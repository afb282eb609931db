"""Criteo files for the tests of their readers."""

import numpy as np
import pytest

from tests.data import criteo_files


@pytest.fixture(scope="session")
def table():
    return criteo_files.make_table()


@pytest.fixture(scope="session")
def text(table):
    return criteo_files.text_of(table)


@pytest.fixture(scope="session")
def text_path(text, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "day_0"
    path.write_text(text)
    return path


@pytest.fixture(scope="session")
def small_ids():
    shape = criteo_files.NUM_EXAMPLES, 26
    return np.random.default_rng(1).integers(1, 5000, shape).astype(np.int32)


@pytest.fixture(scope="session")
def parquet_path(table, small_ids, tmp_path_factory):
    pytest.importorskip("pyarrow", reason="it writes the parquet file")
    path = tmp_path_factory.mktemp("parquet") / "log.parquet"
    columns = criteo_files.columns_of(table, small_ids)
    return criteo_files.write_parquet(path, columns, row_group_size=70)
