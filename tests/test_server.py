"""What `python -m tf_slipstream.server` takes."""

import json

import pytest

from tf_slipstream import server

CLUSTER = {"worker": ["a:1", "b:1"], "ps": ["c:1"]}


def test_arguments_name_the_task():
    argv = ["--cluster", json.dumps(CLUSTER), "--task", "worker:1"]
    assert server.parse_task(argv, {}) == (CLUSTER, "worker", 1)


def test_tf_config_names_the_task_and_arguments_go_first():
    config = {"cluster": CLUSTER, "task": {"type": "ps", "index": 0}}
    environ = {"TF_CONFIG": json.dumps(config)}
    assert server.parse_task([], environ) == (CLUSTER, "ps", 0)
    assert server.parse_task(["--task", "worker:0"], environ) == (CLUSTER, "worker", 0)


@pytest.mark.parametrize(
    "argv, expected",
    [
        ([], "cluster"),
        (["--cluster", "{"], "--cluster is not JSON"),
        (["--cluster", '{"worker": ["a:1"]}', "--task", "worker:0"], "parameter servers"),
        (["--cluster", json.dumps(CLUSTER)], "task"),
        (["--cluster", json.dumps(CLUSTER), "--task", "worker:2"], "worker:0 to worker:1"),
        (["--cluster", json.dumps(CLUSTER), "--task", "chief:0"], "start it with plain Python"),
        (["--cluster", json.dumps(CLUSTER), "--task", "worker"], "worker:0 to worker:1"),
    ],
)
def test_a_mistake_is_named_with_what_to_write_instead(argv, expected, capsys, monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        server.parse_task(argv, {})
    assert server.main(argv) == 2
    assert expected in capsys.readouterr().err
