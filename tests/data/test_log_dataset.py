"""A click log as a dataset: what becomes of a pass that ends early, and of its process."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tf_slipstream.data import ClickLog

BATCH_SIZE = 4
BAD_BATCH = 3
# Reads take long, so that one is under way when Python ends.
LOG = """
import os, sys, time
import numpy as np
import tensorflow as tf
from tf_slipstream.data import ClickLog

class Log(ClickLog):
    cardinalities = (3,)
    num_dense = 1
    num_examples = None

    def _blocks(self, start, stop):
        for block in range(start // 4, 10**6):
            if block:
                time.sleep(0.5)
            if block == int(sys.argv[1]):
                raise ValueError("bad batch")
            yield np.zeros((4, 1), np.float32), np.zeros((4, 1), np.int32), np.zeros(4, np.float32)

def consume():
    iterator = iter(Log().dataset(None, 4))
    for batch in iterator:
        print("read", flush=True)
        {in_loop}

consume()
"""


class BrokenLog(ClickLog):
    """Ids count the examples; batch `BAD_BATCH` is bad until it is mended."""

    cardinalities = (1000,)
    num_dense = 1
    num_examples = 40
    is_broken = True

    def _blocks(self, start, stop):
        for first in range(start, min(stop or 40, 40), BATCH_SIZE):
            if self.is_broken and first == BAD_BATCH * BATCH_SIZE:
                raise ValueError("a bad batch")
            ids = np.arange(first, first + BATCH_SIZE, dtype=np.int32)[:, None]
            yield np.zeros((BATCH_SIZE, 1), np.float32), ids, np.zeros(BATCH_SIZE, np.float32)


def read_to_error(iterator):
    ids = []
    with pytest.raises(tf.errors.InvalidArgumentError, match="a bad batch"):
        for (_, batch), _ in iterator:
            ids.extend(batch.numpy()[:, 0])
    return ids


def test_every_pass_raises_the_error_of_a_batch_and_ends_there():
    dataset = BrokenLog().dataset(None, BATCH_SIZE)
    for _ in range(2):
        iterator = iter(dataset)
        assert read_to_error(iterator) == list(range(BAD_BATCH * BATCH_SIZE))
        assert list(iterator) == []
    assert len(list(dataset.ignore_errors())) == BAD_BATCH


def test_a_pass_after_the_error_was_mended_reads_everything():
    log = BrokenLog()
    dataset = log.dataset(None, BATCH_SIZE)
    for iterator in [iter(dataset) for _ in range(3)]:
        read_to_error(iterator)
    log.is_broken = False
    ids = [batch.numpy()[:, 0] for (_, batch), _ in dataset]
    assert np.concatenate(ids).tolist() == list(range(40))


@pytest.mark.parametrize(
    ("bad_block", "in_loop", "error"),
    [(3, "pass", "bad batch"), (-1, "raise KeyError('of the model')", "of the model")],
    ids=["error_in_the_data", "error_elsewhere"],
)
def test_the_process_ends_while_a_batch_is_read_ahead(bad_block, in_loop, error):
    """The traceback of an uncaught error keeps the iterator until Python ends."""
    command = [sys.executable, "-c", LOG.format(in_loop=in_loop), str(bad_block)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert "read" in done.stdout, done.stderr
    assert error in done.stderr
    assert done.returncode == 1
