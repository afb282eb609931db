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
from tf_slipstream.ops import StepSettings, _library
from tf_slipstream.ops.apply_rows import apply_rows
from tf_slipstream.ops.live_slices import live_slices

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
        ops = ("ApplyRows", "LiveSlices", "SettleRows")
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
            scales = [tf.constant(scale) for scale in (1.0, 0.5, 2.0)]
            settings = StepSettings(step, tf.constant(0.25), clip_value=0.75)
            apply_rows(rule, states, slices, settings, scales, [0.0, 0.125, 0.0], num_lookups)

    return step_once


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
