"""Checks steps on several threads, beside other steps and beside readers of the table."""

import pathlib
import subprocess
import sys
import threading

import numpy as np
import pytest
import tensorflow as tf

from tests.conftest import NUM_THREADS
from tests.ops import tables, training_hash
from tests.ops.tables import RULE_CASES
from tf_slipstream.ops.apply_rows import apply_rows

SGD = RULE_CASES["sgd"].rule
ROOT = pathlib.Path(__file__).parents[2]


def run_threads(*targets, timeout=60):
    """Runs functions at once, each on its thread, and passes on what they raise."""
    failures = []

    def run(target):
        try:
            target()
        except BaseException as error:
            failures.append(error)

    # Daemons: a deadlock then fails the test without keeping the process from ending.
    threads = [threading.Thread(target=run, args=[target], daemon=True) for target in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout)
    if failures:
        raise failures[0]
    assert not any(thread.is_alive() for thread in threads), "a thread hangs"


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


def test_steps_at_once_on_one_table_lose_no_update():
    """With whole numbers, so that sums are exact in any order."""
    num_threads, num_steps, num_rows = 4, 8, 3_000
    rule, random = SGD, np.random.default_rng(0)
    state = tables.new_state(rule, np.zeros([num_rows, 8]))
    ids = random.integers(0, num_rows, [num_threads, 10_000])
    grads = random.integers(-4, 5, [num_threads, 10_000, 8]).astype(np.float32)

    def train(thread):
        batch = tables.slices(ids[thread], grads[thread])
        for _ in range(num_steps):
            apply_rows(rule, [state], [batch], tables.settings())

    run_threads(*(lambda thread=thread: train(thread) for thread in range(num_threads)))
    expected = np.zeros([num_rows, 8])
    np.add.at(expected, ids.ravel(), -num_steps * grads.reshape([-1, 8]))
    np.testing.assert_array_equal(state.table.numpy(), expected)
    num_distinct = sum(len(np.unique(one)) for one in ids)
    np.testing.assert_array_equal(
        state.counters.numpy(),
        tables.counters(num_lookups=num_steps * ids.size, num_row_updates=num_steps * num_distinct),
    )


def test_steps_on_tables_in_opposite_orders_do_not_block_each_other():
    rule = RULE_CASES["momentum"].rule
    states = [tables.new_state(rule, np.zeros([4, 2]), name) for name in ("users", "items")]
    batches = [tables.slices(np.array([0, 3]), np.ones([2, 2], "f"))] * 2

    def train(ordered_states):
        for _ in range(300):
            apply_rows(rule, ordered_states, batches, tables.settings())

    run_threads(lambda: train(states), lambda: train(states[::-1]))
    for state in states:
        assert state.counters.numpy()[0] == 2 * 300 * 2


@pytest.mark.parametrize("read", ["gather", "dense"])
def test_a_read_never_sees_half_a_step(read):
    """Every step takes 1 from every row, so that all rows are alike between steps."""
    num_rows, min_steps, max_steps, num_differing_reads = 20_000, 60, 20_000, 10
    state = tables.new_state(SGD, np.zeros([num_rows, 8]))
    batch = tables.slices(np.arange(num_rows), np.ones([num_rows, 8], np.float32))
    # In an order of its own, so that a read beside a step would meet rows done and not done.
    ids = tf.constant(np.random.default_rng(0).permutation(num_rows))
    seen = set()
    num_steps = 0
    done = threading.Event()

    def train():
        nonlocal num_steps
        while num_steps < min_steps or len(seen) < num_differing_reads and num_steps < max_steps:
            apply_rows(SGD, [state], [batch], tables.settings())
            num_steps += 1
        done.set()

    def watch():
        while not done.is_set():
            rows = tf.gather(state.table, ids) if read == "gather" else state.table.read_value()
            seen.add(tuple(np.unique(rows.numpy())))

    run_threads(train, watch, watch)
    assert len(seen) >= num_differing_reads, "too few reads came between steps to tell"
    assert {len(values) for values in seen} == {1}
    np.testing.assert_array_equal(np.unique(state.table.numpy()), [-num_steps])


def test_a_dense_read_keeps_its_values_during_later_steps(native_or_fallback):
    rule = RULE_CASES["adam"].rule
    state = tables.new_state(rule, np.ones([5, 3]))
    batch = tables.slices(np.array([0, 4]), np.ones([2, 3], np.float32))
    for step in (1, 2, 3):
        variables = [state.table, *state.slots, state.last_steps, state.counters]
        held = [variable.read_value() for variable in variables]
        copies = [np.array(values.numpy()) for values in held]
        apply_rows(rule, [state], [batch], tables.settings(step, 0.125))
        for values, copy, variable in zip(held, copies, variables):
            assert values.numpy().tobytes() == copy.tobytes()
            assert variable.numpy().tobytes() != copy.tobytes()


def test_a_step_writes_into_the_variables_own_memory():
    """So that a step costs no copy of the table, and a dense read of it none either."""
    state = tables.new_state(SGD, np.zeros([5, 3]))
    batch = tables.slices(np.array([0, 4]), np.ones([2, 3], np.float32))

    def address():
        return np.asarray(memoryview(state.table.read_value())).__array_interface__["data"][0]

    apply_rows(SGD, [state], [batch], tables.settings())
    before = address()
    apply_rows(SGD, [state], [batch], tables.settings())
    assert address() == before
