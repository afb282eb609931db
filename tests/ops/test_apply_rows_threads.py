"""Checks steps on several threads, beside other steps and beside readers of the table."""

import pathlib
import subprocess
import sys
import threading
import time

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
    deadline = time.monotonic() + timeout
    for thread in threads:
        thread.join(max(0, deadline - time.monotonic()))
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


def looped_step(rule, states, num_steps):
    """Returns a function of batches that does many steps with no Python, and so no GIL, between."""

    @tf.function
    def steps(batches):
        for _ in tf.range(num_steps):
            apply_rows(rule, states, batches, tables.settings())

    return steps


def test_steps_at_once_beside_a_reader_lose_no_update():
    """With whole numbers, so that sums are exact in any order."""
    num_threads, num_steps, num_rows, dim = 4, 1_000, 6, 4_000
    random = np.random.default_rng(0)
    state = tables.new_state(SGD, np.zeros([num_rows, dim]))
    # Wide rows, in the same order: two steps that overlap would meet in a row.
    ids = np.array([5, 0, 1, 2, 3, 4, 5])
    grads = random.integers(-4, 5, [num_threads, len(ids), dim]).astype(np.float32)
    steps = looped_step(SGD, [state], num_steps)
    batches = [[tables.slices(ids, one)] for one in grads]
    steps.get_concrete_function(batches[0])
    num_running = num_threads

    def train(batch):
        nonlocal num_running
        try:
            steps(batch)
        finally:
            num_running -= 1

    def read():
        # A step that finds the table held by a reader goes on with a copy of it.
        while num_running:
            state.table.read_value()

    run_threads(*(lambda batch=batch: train(batch) for batch in batches), read)

    expected = np.zeros([num_rows, dim])
    np.add.at(expected, ids, -num_steps * grads.sum(axis=0, dtype=np.float64))
    np.testing.assert_array_equal(state.table.numpy(), expected)
    np.testing.assert_array_equal(
        state.counters.numpy(),
        tables.counters(
            num_lookups=num_threads * num_steps * len(ids),
            num_row_updates=num_threads * num_steps * num_rows,
        ),
    )


def test_steps_on_tables_in_opposite_orders_do_not_block_each_other():
    num_steps, num_lookups = 100, 5_000
    users, items = (tables.new_state(SGD, np.zeros([1_000, 8])) for _ in range(2))
    batch = tables.slices(np.arange(num_lookups) % 1_000, np.ones([num_lookups, 8], np.float32))

    def train(*states):
        for _ in range(num_steps):
            apply_rows(SGD, states, [batch] * len(states), tables.settings())

    # Steps on one table alone keep the others waiting in the middle of taking their two.
    orders = [(users, items), (items, users), (users,), (items,)]
    run_threads(*(lambda order=order: train(*order) for order in orders))
    for state in (users, items):
        assert state.counters.numpy()[0] == 3 * num_steps * num_lookups


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
