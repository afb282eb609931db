"""Runs the ops' GPU kernels where there is no GPU: with emulated CUDA, registered for the CPU.

`custom_ops/tests/emulated_cuda` says what that is. What is tested here is TensorFlow's side: which
variable is which, what is refused, and what is told when. The kernels have tests of their own.
"""

import contextlib
import dataclasses
import pathlib
import shutil
import subprocess

import numpy as np
import pytest
import tensorflow as tf

from tests.ops import tables
from tests.ops.tables import RULE_CASES
from tests.ops.test_int_types import with_uint32
from tests.ops.test_settle_rows import STEP, entry_with, sleeping_state
from tf_slipstream import StalenessPolicy
from tf_slipstream.ops import StepSettings, _library
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.live_slices import live_slices
from tf_slipstream.ops.mark_rows import mark_rows
from tf_slipstream.ops.settle_rows import settle_rows
from tf_slipstream.state.schema import POLICY_STATE, POOL_INTS

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="compiles: there is no g++")

SOURCES = pathlib.Path(__file__).parents[2] / "custom_ops"
FILES = (
    "kernels/huge_pages.cc",
    "kernels/live_rows.cc",
    "kernels/live_rows.cu",
    "kernels/staleness.cc",
    "kernels/thread_team.cc",
    "kernels/update_rows.cc",
    "kernels/update_rows.cu",
    "tests/emulated_cuda/emulated_cuda.cc",
)
# Reading TensorFlow's headers takes a compiler long: once for all.
TENSORFLOW_FILES = (
    "tf/apply_rows_gpu_op.cc",
    "tf/gpu_context.cc",
    "tf/kernel_context.cc",
    "tf/live_slices_gpu_op.cc",
    "tf/mark_rows_gpu_op.cc",
    "tf/settle_rows_gpu_op.cc",
    "tf/table_args.cc",
    "tf/table_variables.cc",
)
LABEL = "emulated"


@pytest.fixture(scope="module")
def gpu_kernels(tmp_path_factory):
    """Loads the GPU kernels; the context that it returns makes functions use them."""
    assert _library.native_ops() is not None  # registers the ops
    folder = tmp_path_factory.mktemp("gpu_ops")
    all_files = folder / "tensorflow_files.cc"
    all_files.write_text("".join(f'#include "{SOURCES / name}"\n' for name in TENSORFLOW_FILES))
    flags = ["-std=c++17", "-O1", "-fPIC", "-w", "-ffp-contract=off"]
    flags += [f"-I{SOURCES / 'tests' / 'emulated_cuda'}"]
    # TensorFlow has CUDA's names in its library too; the emulated ones must win here.
    flags += ["-fvisibility=hidden", *tf.sysconfig.get_compile_flags()]
    flags += [f'-DSLIPSTREAM_ON_GPU=Device(tensorflow::DEVICE_CPU).Label("{LABEL}")']
    objects = []
    for source in (*(SOURCES / name for name in FILES), all_files):
        objects.append(str(folder / f"{source.name}.o"))
        command = ["g++", *flags, "-x", "c++", "-c", str(source), "-o", objects[-1]]
        subprocess.run(command, check=True)
    library = folder / "gpu_ops.so"
    link = ["g++", "-shared", "-Wl,-Bsymbolic", *objects, "-o", str(library)]
    subprocess.run([*link, *tf.sysconfig.get_link_flags()], check=True)
    tf.load_library(str(library))

    @contextlib.contextmanager
    def use():
        ops = ("ApplyRows", "LiveSlices", "MarkRows", "SettleRows")
        labels = {f"Slipstream>{name}": LABEL for name in ops}
        with tf.compat.v1.get_default_graph()._kernel_label_map(labels):
            yield

    return use


def both(make_states, use):
    """Yields new states and a context for them, for the CPU's kernels and for a GPU's."""
    yield make_states(), contextlib.nullcontext
    yield [with_uint32(state) for state in make_states()], use


def three_tables(rule):
    """Returns states of several widths; rows of the middle one are asleep."""
    wake_steps = np.where(np.arange(40) % 3 == 0, 3, 0)
    return [
        tables.new_state(rule, np.ones([50, 4]), "first"),
        tables.new_state(rule, np.ones([40, 3]), "second", wake_steps=wake_steps),
        tables.new_state(rule, np.ones([7, 8]), "third", wake_steps=np.zeros(7)),
    ]


def batches(step, dtype=np.int64):
    random = np.random.default_rng(step)
    return [
        tables.slices(
            random.integers(0, num_rows, num).astype(dtype),
            random.normal(size=[num, dim]).astype(np.float32),
        )
        for num_rows, dim, num in ((50, 4, 60), (40, 3, 30 if step != 2 else 0), (7, 8, 300))
    ]


def stepper(rule, states, context, num_lookups=None):
    """Returns a function that trains the states in a context."""

    @tf.function
    def step_once(step, slices):
        with context():
            num = len(states)
            scales = [tf.constant(scale) for scale in (1.0, 0.5, 2.0)[:num]]
            settings = StepSettings(step, tf.constant(0.25), clip_value=0.75)
            apply_rows(rule, states, slices, settings, scales, DECAYS[:num], num_lookups)

    return step_once


DECAYS = [0.0, 0.125, 0.0]


def settler(rule, states, context, wake, decays=DECAYS):
    """Returns a function that settles the states in a context."""

    @tf.function
    def settle(step):
        with context():
            settle_rows(rule, states, StepSettings(step, tf.constant(0.25)), decays, wake)

    return settle


def finder(states, context):
    @tf.function
    def find(slices):
        with context():
            return live_slices(states, slices, tf.constant(2, tf.int64))

    return find


def assert_same_values(states, expected):
    for state, other in zip(states, expected, strict=True):
        arrays, others = tables.arrays_of(state), tables.arrays_of(other)
        for name, array in arrays.items():
            if array.dtype.kind == "f" and name.startswith(("table", "slot")):
                # Many repeats are summed in pieces.
                np.testing.assert_allclose(array, others[name], rtol=1e-5, atol=1e-6)
            else:
                assert array.tobytes() == others[name].tobytes(), name


@pytest.mark.parametrize("name", RULE_CASES)
def test_steps_do_to_several_tables_what_they_do_on_the_cpu(name, gpu_kernels):
    rule = RULE_CASES[name].rule
    results = []
    for states, context in both(lambda: three_tables(rule), gpu_kernels):
        step_once = stepper(rule, states, context)
        for step in (1, 2, 3, 6):
            step_once(tf.constant(step, tf.int64), batches(step))
        results.append(states)
    assert_same_values(results[1], results[0])


@pytest.mark.parametrize("name", RULE_CASES)
def test_settling_does_to_several_tables_what_it_does_on_the_cpu(name, gpu_kernels):
    rule = RULE_CASES[name].rule
    results = []
    for states, context in both(lambda: three_tables(rule), gpu_kernels):
        step_once = stepper(rule, states, context)
        for step in (1, 2, 3):
            step_once(tf.constant(step, tf.int64), batches(step))
        before = [tables.arrays_of(state) for state in states]
        settler(rule, states, context, wake=False)(tf.constant(6, tf.int64))
        settled = [tables.arrays_of(state) for state in states]
        # The middle one has a weight decay.
        assert settled[1]["table"].tobytes() != before[1]["table"].tobytes()
        settler(rule, states, context, wake=True)(tf.constant(6, tf.int64))
        for state, arrays in zip(states, settled, strict=True):
            again = {**tables.arrays_of(state), "pool_ints": None, "policy_state": None}
            for variable, array in again.items():
                assert array is None or array.tobytes() == arrays[variable].tobytes(), variable
        step_once(tf.constant(7, tf.int64), batches(7))
        results.append(states)
    assert_same_values(results[1], results[0])


@pytest.mark.parametrize("wake", [False, True])
def test_what_is_held_is_applied_as_on_the_cpu(wake, gpu_kernels):
    sgd, results = RULE_CASES["sgd"].rule, []
    for states, context in both(lambda: [sleeping_state()], gpu_kernels):
        settle = settler(sgd, states, context, wake, [0.125])
        for step in (STEP, STEP):
            settle(tf.constant(step, tf.int64))
        assert not states[0].pool_floats.numpy()[:, :3].any()
        results.append(states)
    assert_same_values(results[1], results[0])


def evicting_state():
    """Returns a state with 300 idle entries, a third of which hold something, and as many rows."""
    state = tables.new_state(RULE_CASES["adam"].rule, np.ones([600, 3]), wake_steps=[0] * 600)
    ints, floats = state.pool_ints.numpy()[:300], state.pool_floats.numpy()[:300]
    ints[:, POOL_INTS.index("live_step")] = np.arange(300) % 7
    ints[:, POOL_INTS.index("num_updates")] = 50 + np.arange(300)
    ints[::2, POOL_INTS.index("wake_step")] = 20
    ints[::3, POOL_INTS.index("held_steps")] = 2
    ints[:, POOL_INTS.index("is_skipped")] = 0
    floats[::3, :3] = np.random.default_rng(0).normal(size=[100, 3])
    row_states = np.concatenate([-1 - np.arange(300), np.zeros(300)]).astype(np.int32)
    state.last_steps.assign(np.full(600, 5))
    state.policy_state[POLICY_STATE.index("num_entries")].assign(300)
    state.policy_state[POLICY_STATE.index("num_sleeping")].assign(150)
    state.policy_state[POLICY_STATE.index("hand")].assign(100)
    return dataclasses.replace(
        state,
        policy=StalenessPolicy(min_updates=1, refresh_every=0),
        row_states=tf.Variable(row_states),
        pool_ints=tf.Variable(ints),
        pool_floats=tf.Variable(floats),
    )


@pytest.mark.parametrize("are_held_elsewhere", [False, True])
def test_idle_entries_go_to_other_rows_as_on_the_cpu(are_held_elsewhere, gpu_kernels):
    rule, results = RULE_CASES["adam"].rule, []
    num_lookups = [tf.constant([9, 0, 0], tf.int64)] if are_held_elsewhere else None
    all_ids = {900: [301, 302], 1_500: [*range(310, 500), 7], 1_501: [*range(500, 530), 9]}
    for states, context in both(lambda: [evicting_state()], gpu_kernels):
        step_once = stepper(rule, states, context, num_lookups)
        for step, ids in all_ids.items():
            grads = np.random.default_rng(step).normal(size=[len(ids), 3]).astype(np.float32)
            step_once(tf.constant(step, tf.int64), [tables.slices(np.array(ids), grads)])
        results.append(states)
    assert_same_values(results[1], results[0])
    assert results[0][0].policy_state.numpy()[8] == (100 + 3 * 256) % 300
    has_entry = results[0][0].row_states.numpy() < 0
    # None in step 900. Then row 7 is not idle, and of the 255 others looked at 85 hold something.
    assert not has_entry[300:310].any()
    assert has_entry[310:500].sum() == (170 if are_held_elsewhere else 190)
    assert has_entry[[7, 9]].all() and has_entry.sum() == 300


def test_a_damaged_pool_is_not_settled_and_that_is_told_when_the_next_step_begins(gpu_kernels):
    sgd = RULE_CASES["sgd"].rule
    states = [sleeping_state("users"), sleeping_state("items")]
    entry_with(states[1], 3, row=6)
    states = [with_uint32(state) for state in states]
    before = [tables.arrays_of(state) for state in states]
    settle = settler(sgd, states, gpu_kernels, True, [0.5, 0.5])
    settle(tf.constant(STEP, tf.int64))
    before[1]["counters"][6] = 1
    for state, arrays in zip(states, before, strict=True):
        tables.assert_same_bits(tables.arrays_of(state), arrays)
    message = "In an earlier step.*table 'items': entry 3 of the optimizer's pool makes no sense"
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        settle(tf.constant(STEP, tf.int64))


def test_other_lookups_are_counted_in_place_of_those_found(gpu_kernels):
    rule, results = RULE_CASES["sgd"].rule, []
    for states, context in both(lambda: three_tables(rule), gpu_kernels):
        num_lookups = [tf.constant([100 + t, 10 + t, t], tf.int64) for t in range(3)]
        stepper(rule, states, context, num_lookups)(tf.constant(1, tf.int64), batches(1))
        results.append(states)
    assert results[1][2].counters.numpy()[:3].tolist() == [102, 12, 2]
    assert_same_values(results[1], results[0])


def test_bfloat16_tables_round_as_on_the_cpu(gpu_kernels):
    rule = RULE_CASES["adagrad"].rule
    results = []
    for states, context in both(lambda: three_tables(rule), gpu_kernels):
        states = [
            dataclasses.replace(state, table=tf.Variable(tf.cast(state.table, tf.bfloat16)))
            for state in states
        ]
        step_once = stepper(rule, states, context)
        for step in (1, 2, 3):
            # The third table's rows are summed in pieces, so that its bits may differ.
            step_once(tf.constant(step, tf.int64), batches(step))
        results.append([tf.bitcast(state.table, tf.uint16).numpy() for state in states[:2]])
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_live_slices_are_those_of_the_cpu(dtype, gpu_kernels):
    sgd, results = RULE_CASES["sgd"].rule, []
    for states, context in both(lambda: three_tables(sgd), gpu_kernels):
        results.append(finder(states, context)(batches(1, dtype)))
    for one, other in zip(*results, strict=True):
        np.testing.assert_array_equal(one.indices, other.indices)
        np.testing.assert_allclose(one.values, other.values, rtol=1e-5, atol=1e-6)


def test_a_bad_step_changes_nothing_and_is_told_when_the_next_one_begins(gpu_kernels):
    """Though it was traced anew, for the shapes of the bad batch."""
    rule = RULE_CASES["adam"].rule
    states = [with_uint32(state) for state in three_tables(rule)]
    step_once = stepper(rule, states, gpu_kernels)
    step_once(tf.constant(1, tf.int64), batches(1))
    before = [tables.arrays_of(state) for state in states]
    bad = batches(2)
    bad[2] = tables.slices(np.array([3, 7]), np.ones([2, 8], np.float32))
    step_once(tf.constant(2, tf.int64), bad)
    with pytest.raises(
        tf.errors.InvalidArgumentError,
        match=r"In an earlier step, seen on the GPU: table 'third': id 7 at position 1 is not in "
        r"\[0, 7\)\. No row was changed",
    ):
        step_once(tf.constant(3, tf.int64), batches(3))
    before[2]["counters"][6] = 1
    for state, arrays in zip(states, before, strict=True):
        tables.assert_same_bits(tables.arrays_of(state), arrays)
    step_once(tf.constant(4, tf.int64), batches(4))
    assert tables.arrays_of(states[0])["table"].tobytes() != before[0]["table"].tobytes()


def test_live_slices_tell_of_a_bad_gradient_at_once(gpu_kernels):
    states = [with_uint32(state) for state in three_tables(RULE_CASES["sgd"].rule)]
    bad = batches(1)
    bad[0] = tables.slices(np.array([4, 9]), np.float32([[1, 1, 1, 1], [1, np.nan, 1, 1]]))
    find = finder(states, gpu_kernels)
    for _ in range(2):
        with pytest.raises(tf.errors.InvalidArgumentError, match="table 'first': the gradient"):
            find(bad)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda state: {"changed_rows": tf.Variable(tf.zeros([1], tf.uint32))}, "should have 2"),
        (lambda state: {"counters": tf.Variable(tf.zeros([3], tf.int64))}, "should have 9"),
        (lambda state: {"last_steps": tf.Variable(tf.zeros([9], tf.uint32))}, "should have 50"),
        (lambda state: {"slots": (state.slots[0], tf.Variable([0.0]))}, "should have 200"),
        (lambda state: {"last_steps": tf.Variable(tf.zeros([50], tf.int32))}, "expected uint32"),
    ],
)
def test_variables_of_a_wrong_shape_or_type_are_refused(spoil, message, gpu_kernels):
    rule = RULE_CASES["adam"].rule
    first, *others = [with_uint32(state) for state in three_tables(rule)]
    first = dataclasses.replace(first, **spoil(first))
    step_once = stepper(rule, [first, *others], gpu_kernels)
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        step_once(tf.constant(1, tf.int64), batches(1))


@pytest.mark.parametrize("clear", [False, True])
def test_bits_of_changed_rows_are_set_and_cleared(clear, gpu_kernels):
    num_words = 5000  # more than the threads of a block
    rng = np.random.default_rng(0)
    before, words = rng.integers(-(2**31), 2**31, [2, num_words]).astype(np.int32)
    state = tables.new_state(RULE_CASES["sgd"].rule, np.zeros([32 * num_words, 1]))
    state.changed_rows.assign(before)
    state = with_uint32(state)

    @tf.function
    def mark():
        with gpu_kernels():
            mark_rows(state, words, clear)

    mark()
    expected = before & ~words if clear else before | words
    np.testing.assert_array_equal(state.changed_rows.numpy().view(np.int32), expected)
