"""A worker or a parameter server: `python -m tf_slipstream.server`.

Such a process runs what the coordinator, the program that trains, sends it. It is
`tf.distribute.Server` with this package's ops loaded.

```sh
python -m tf_slipstream.server --task worker:0 \\
    --cluster '{"worker": ["10.0.0.2:4000"], "ps": ["10.0.0.3:4000"]}'
```

Both arguments may come from the environment variable `TF_CONFIG` instead, as TensorFlow has it:
`{"cluster": {"worker": [...], "ps": [...]}, "task": {"type": "worker", "index": 0}}`.
"""

import argparse
import json
import os
import re
import sys

import tensorflow as tf

from tf_slipstream.engine.connections import end_when_lost
from tf_slipstream.ops._library import needed_native_ops

_JOBS = ("worker", "ps")


def parse_task(argv):
    """Returns the cluster, a dict from job to addresses, the task's job and its index.

    Args:
        argv: The command line, without the program; what it lacks is in TF_CONFIG.

    Raises:
        ValueError: If they do not name a task of a cluster.
    """
    parser = argparse.ArgumentParser(
        prog="python -m tf_slipstream.server", description="Starts a worker or a parameter server."
    )
    parser.add_argument("--cluster", help="JSON: addresses of each job; else TF_CONFIG's")
    parser.add_argument("--task", help="worker:INDEX or ps:INDEX; else TF_CONFIG's")
    args = parser.parse_args(argv)
    cluster, job, index = _from_environment()
    if args.cluster is not None:
        cluster = _parse_json(args.cluster)
    if not isinstance(cluster, dict) or not all(cluster.get(job) for job in _JOBS):
        raise ValueError(
            "The cluster must have addresses of workers and parameter servers, as in --cluster "
            '\'{"worker": ["HOST:PORT", ...], "ps": ["HOST:PORT", ...]}\' or in TF_CONFIG; '
            f"got {cluster!r}."
        )
    if args.task is not None:
        match = re.fullmatch(r"(\w+):(\d+)", args.task)
        job, index = (match[1], int(match[2])) if match else (args.task, None)
    if job not in _JOBS or index is None or not 0 <= index < len(cluster[job]):
        counts = ", ".join(f"{job}:0 to {job}:{len(cluster[job]) - 1}" for job in _JOBS)
        raise ValueError(
            f"The task must be one of {counts}, by --task or TF_CONFIG; got {job}:{index}. The "
            "coordinator, or chief, is the program that trains: start it with plain Python."
        )
    return cluster, job, index


def _from_environment():
    """Returns the cluster, job and index of TF_CONFIG: an empty dict and None where it has none."""
    resolver = tf.distribute.cluster_resolver.TFConfigClusterResolver()
    try:
        return resolver.cluster_spec().as_dict(), resolver.task_type, resolver.task_id
    except (AttributeError, OverflowError, TypeError, ValueError) as error:
        text = os.environ["TF_CONFIG"]
        raise ValueError(f"TF_CONFIG names no cluster: {error}; got {text!r}.") from None


def _parse_json(text):
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"--cluster is not JSON: {error}; got {text!r}.") from None


def greeting(job, index, address):
    """Returns what a task says when it is up: where it listens, and to whom."""
    return (
        f"tf_slipstream.server: {job}:{index} listens at {address}. TensorFlow opens the port at "
        "every address of this machine, and asks for no password: whoever reaches it can run "
        "code here. Let nobody reach it but the cluster."
    )


def main(argv=None):
    """Starts the server and does not return, but for an error in what it was told."""
    try:
        cluster, job, index = parse_task(sys.argv[1:] if argv is None else argv)
        needed_native_ops()
        end_when_lost(cluster)
    except (ValueError, RuntimeError) as error:
        print(f"tf_slipstream.server: {error}", file=sys.stderr)
        return 2
    server = tf.distribute.Server(
        tf.train.ClusterSpec(cluster), job_name=job, task_index=index, protocol="grpc"
    )
    print(greeting(job, index, cluster[job][index]), flush=True)
    server.join()
    return 0


if __name__ == "__main__":
    sys.exit(main())
