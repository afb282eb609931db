"""A worker of one subject of `multi_worker.py`: the step of mirrored_step.py over a network.

The first worker shapes the links, times steps and counts bytes, and prints a JSON list.
"""

import argparse
import json
import os
import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import numpy as np
import tensorflow as tf
import workload

from distribution import mirrored_step
from distribution.mirrored import spread
from distribution.network import Links


def main():
    args = argparse.Namespace(**json.loads(sys.argv[1]))
    # Before any other use of TensorFlow: it connects the workers.
    strategy = tf.distribute.MultiWorkerMirroredStrategy()
    args.replicas = strategy.num_replicas_in_sync
    is_first = strategy.cluster_resolver.task_id == 0
    shape = (workload.NUM_BATCHES, args.replicas, args.lookups)
    ids = workload.zipf_ids(np.random.default_rng(0), args.rows, args.zipf, shape)
    step, optimizer = mirrored_step.prepared(args, strategy, ids)
    links, results = Links(**args.links), []
    for gigabits in [None, *args.gigabits]:
        if is_first:
            links.shape(gigabits)
        # Workers meet in each step: links are shaped before the first of these ends.
        mirrored_step.timed(step, 2 if results else args.warmup)
        before, start_bytes = mirrored_step.counts_of(optimizer), links.bytes_sent()
        seconds = mirrored_step.timed(step, args.steps)
        num_bytes = links.bytes_sent() - start_bytes
        lookups, rows = mirrored_step.shares(before, mirrored_step.counts_of(optimizer))
        results.append(
            {
                "subject": args.subject,
                "gigabits": gigabits,
                "milliseconds": spread(seconds),
                "bytes_per_step": num_bytes / args.steps / args.replicas,
                "saved": mirrored_step.saved(lookups, rows),
            }
        )
    if is_first:
        print(json.dumps(results))


if __name__ == "__main__":
    main()
