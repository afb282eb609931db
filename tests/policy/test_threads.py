"""Checks that states do not depend on the number of threads, nor on where steps run."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import NUM_THREADS
from tests.ops.test_apply_rows_threads import ROOT
from tests.policy import training_hash
from tests.policy.training import Product, Stream, oracle_of, policies


def test_results_do_not_depend_on_the_number_of_threads():
    others = [
        subprocess.Popen(
            [sys.executable, "-m", training_hash.__name__, str(num_threads)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            text=True,
        )
        for num_threads in (1, 4)
    ]
    assert tf.config.threading.get_intra_op_parallelism_threads() == NUM_THREADS == 2
    here = training_hash.training_hash()
    for other in others:
        output, _ = other.communicate(timeout=120)
        assert other.returncode == 0
        assert output.split()[-1] == here


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_native_steps_in_a_function_are_those_outside(on_stale):
    policy = policies(on_stale=on_stale, threshold=2.0, refresh_every=25)
    stream = Stream(dim=9, num_steps=60, change_rate_at=40)
    made = []
    for in_function in (False, True):
        product = Product(stream.values(), "adam", policy, in_function=in_function)
        for batch in stream.steps():
            product.step(*batch)
        made.append(product.arrays())
    for name, array in made[0].items():
        assert array.tobytes() == made[1][name].tobytes(), name
    assert made[0]["counters"][1:3].any()


@pytest.mark.parametrize("on_stale", ["defer", "skip"])
def test_large_batches_give_what_the_oracle_gives_where_sums_are_exact(on_stale):
    """With whole numbers, so that both judge alike; hundreds of rows, repeats, many popular."""
    policy = policies(on_stale=on_stale, drift_metric="l2", threshold=2.0, refresh_every=25)
    random = np.random.default_rng(0)
    batches = [random.zipf(1.3, 2_000) % 700 for _ in range(40)]
    product = Product(np.zeros([700, 5]), "sgd", policy)
    oracle = oracle_of(np.zeros([700, 5]), "sgd", policy)
    for step, ids in enumerate(batches):
        whole = np.random.default_rng(step).integers(-1, 2, [len(ids), 5])
        product.step(ids, whole, 0.125)
        oracle.step(ids, whole, 0.125)
    arrays, expected = product.arrays(), oracle.arrays()
    for name, array in arrays.items():
        # What is held has a mean in the oracle, which rounds in float64.
        np.testing.assert_allclose(array, expected[name], rtol=0, atol=1e-12, err_msg=name)
    periods = arrays["pool_ints"][:, 5]
    assert arrays["counters"][1:3].any()
    assert (periods <= 2).sum() > 2 and (periods == 8).sum() > 100
