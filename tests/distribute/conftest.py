"""One source of processes, and one cluster, for all tests of a file."""

import pytest

from tests.distribute import clusters


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    with clusters.Forks(tmp_path_factory.mktemp("forks")) as forks:
        yield forks


@pytest.fixture(scope="module")
def cluster(forks, tmp_path_factory):
    """Two workers and two parameter servers."""
    with clusters.Cluster(forks, tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster
