"""What `python -m tf_slipstream.server` takes."""

import json

import pytest

from tf_slipstream import server

CLUSTER = {"worker": ["a:1", "b:1"], "ps": ["c:1"]}


@pytest.fixture(autouse=True)
def no_tf_config(monkeypatch):
    monkeypatch.delenv("TF_CONFIG", raising=False)


def test_arguments_name_the_task():
    argv = ["--cluster", json.dumps(CLUSTER), "--task", "worker:1"]
    assert server.parse_task(argv) == (CLUSTER, "worker", 1)


@pytest.mark.parametrize("index", [0, "0"])
def test_tf_config_names_the_task_and_arguments_go_first(index, monkeypatch):
    config = {"cluster": CLUSTER, "task": {"type": "ps", "index": index}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert server.parse_task([]) == (CLUSTER, "ps", 0)
    assert server.parse_task(["--task", "worker:0"]) == (CLUSTER, "worker", 0)
    other = {"worker": ["d:1"], "ps": ["e:1", "f:1"]}
    assert server.parse_task(["--cluster", json.dumps(other)]) == (other, "ps", 0)


@pytest.mark.parametrize(
    "text",
    ["{", '{"cluster": 3}', '{"task": {"index": "x"}}', '{"cluster": {"ps": [3]}}']
    + ['{"task": {"index": Infinity}}'],
)
def test_a_tf_config_that_makes_no_sense_is_named(text, monkeypatch, capsys):
    monkeypatch.setenv("TF_CONFIG", text)
    with pytest.raises(ValueError, match="TF_CONFIG names no cluster"):
        server.parse_task([])
    assert server.main([]) == 2
    assert text in capsys.readouterr().err


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
def test_a_mistake_is_named_with_what_to_write_instead(argv, expected, capsys):
    with pytest.raises(ValueError, match=expected.replace("(", r"\(")):
        server.parse_task(argv)
    assert server.main(argv) == 2
    assert expected in capsys.readouterr().err
