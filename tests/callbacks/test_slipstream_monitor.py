"""Checks what SlipstreamMonitor reads, writes, serves and warns of."""

import logging
import math
import sys
import urllib.request

import numpy as np
import pytest
import tensorflow as tf

from tests.callbacks.models import IDS, LABELS, keras, sleepy_model
from tests.distribute.replicas import strategy_of
from tests.policy.drift import drift
from tf_slipstream import (
    Alarm,
    AlarmError,
    SlipstreamEmbedding,
    SlipstreamMonitor,
    SlipstreamOptimizer,
    StalenessPolicy,
)
from tf_slipstream.callbacks.readings import read_tables
from tf_slipstream.state import schema


def trained(monitor, epochs=2, **arguments):
    model = sleepy_model()
    fit = {"batch_size": 16, "epochs": epochs, "verbose": 0, "shuffle": False} | arguments
    model.fit(IDS, LABELS, callbacks=[monitor], **fit)
    return model


def events_of(folder):
    """Returns scalars and histograms: dicts from a tag to a list of pairs of step and value."""
    scalars, histograms = {}, {}
    for path in sorted(folder.glob("*.slipstream")):
        for record in tf.data.TFRecordDataset(str(path)):
            event = tf.compat.v1.Event.FromString(record.numpy())
            for value in event.summary.value:
                if value.HasField("histo"):
                    histograms.setdefault(value.tag, []).append((event.step, value.histo))
                else:
                    scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    return scalars, histograms


def page_of(monitor):
    with urllib.request.urlopen(f"http://localhost:{monitor.port}/metrics", timeout=10) as answer:
        return answer.read().decode()


def test_shares_are_those_of_skip_stats_between_two_readings():
    readings = []

    class Look(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            readings.append((self.model.optimizer.skip_stats()["user"], monitor.latest["user"]))

    monitor = SlipstreamMonitor(every=16)
    model = sleepy_model()
    arguments = {"batch_size": 16, "epochs": 3, "verbose": 0}
    model.fit(IDS, LABELS, callbacks=[monitor, Look()], **arguments)
    assert [latest["step"] for _, latest in readings] == [16, 32, 48]
    for (before, _), (after, latest) in zip(readings, readings[1:]):
        deferred = after.num_deferred_lookups - before.num_deferred_lookups
        assert deferred > 0
        expected = deferred / (after.num_lookups - before.num_lookups)
        assert latest["deferred_lookups_share"] == pytest.approx(expected)
        deferred = after.num_deferred_row_updates - before.num_deferred_row_updates
        expected = deferred / (after.num_row_updates - before.num_row_updates)
        assert latest["deferred_row_updates_share"] == pytest.approx(expected)
        assert latest["rows_asleep"] == after.num_stale_rows > 0
        assert latest["threshold"] == after.drift_threshold
        assert latest["rows"] == 10 and latest["strictness"] == 1


def test_popular_rows_are_read_as_the_state_has_them():
    monitor = SlipstreamMonitor(every=7)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 13:
                tables = self.model.optimizer.engine
                seen.append(read_tables(tables, 0.0, max_rows=1024)["user"])
                state = tables.by_name["user"]
                seen.append([np.asarray(v) for v in (state.pool_ints, state.pool_floats)])
                seen.append(np.asarray(state.table))

    model = sleepy_model()
    model.fit(IDS, LABELS, batch_size=16, verbose=0, callbacks=[monitor, Look()])
    reading, (ints, floats), table = seen
    popular = reading.popular
    num = popular.num_popular
    assert reading.step == 14 and num == 10
    entries = [dict(zip(schema.POOL_INTS, row)) for row in ints[:num]]
    np.testing.assert_array_equal(popular.ages, [14 - one["live_step"] for one in entries])
    np.testing.assert_array_equal(popular.is_asleep, [one["wake_step"] > 0 for one in entries])
    assert popular.is_asleep.any()
    np.testing.assert_allclose(popular.held_norms, np.linalg.norm(floats[:num, :4], axis=1))
    assert popular.held_norms.max() > 0
    expected = [
        drift("coherence", table[e["row"]], f[4:8], f[8], e["window_updates"], 0.0)
        for e, f in zip(entries, floats)
        if 2 * e["window_updates"] >= 2
    ]
    np.testing.assert_allclose(popular.drifts, expected, rtol=1e-5)


def test_a_few_rows_stand_for_a_large_pool():
    model = trained(SlipstreamMonitor())
    reading = read_tables(model.optimizer.engine, 0.0, max_rows=3)["user"]
    assert reading.popular.num_popular == 10
    assert len(reading.popular.ages) == 3


def test_event_files_have_each_reading(tmp_path):
    monitor = SlipstreamMonitor(log_dir=tmp_path / "logs", every=8)
    trained(monitor)
    scalars, histograms = events_of(tmp_path / "logs")
    steps = [step for step, _ in scalars["slipstream/user/deferred_lookups_share"]]
    assert steps == [8, 16, 24, 32]
    last = {tag.rpartition("/")[2]: found[-1][1] for tag, found in scalars.items()}
    for name, value in monitor.latest["user"].items():
        if name != "step":
            assert last[name] == pytest.approx(value, rel=1e-6), name
    assert last["loss"] > 0
    ages = histograms["slipstream/user/age"][-1][1]
    assert sum(ages.bucket) == ages.num == monitor.latest["user"]["rows_asleep"]
    assert ages.max == monitor.latest["user"]["age_max"]
    assert histograms.keys() >= {"slipstream/user/drift", "slipstream/user/held_norm"}


def test_a_folder_that_cannot_be_written_to_ends_the_log_and_not_the_training(tmp_path):
    (tmp_path / "file").write_text("")
    monitor = SlipstreamMonitor(log_dir=tmp_path / "file" / "logs", every=8)
    with pytest.warns(RuntimeWarning, match="cannot write to log_dir .* training goes on"):
        model = trained(monitor)
    assert int(model.optimizer.iterations.numpy()) == 32
    assert monitor.latest["user"]["step"] == 32


def test_prometheus_reads_the_last_reading():
    monitor = SlipstreamMonitor(every=8, prometheus_port=0)
    try:
        trained(monitor)
        lines = page_of(monitor).splitlines()
        values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        latest = monitor.latest["user"]
        assert float(values["slipstream_step"]) == 32
        for kind, name in (("all", "num_lookups"), ("deferred", "num_deferred_lookups")):
            value = values[f'slipstream_lookups_total{{kind="{kind}",table="user"}}']
            assert float(value) == latest[name]
        assert float(values['slipstream_rows_asleep{table="user"}']) == latest["rows_asleep"]
        bucket = 'slipstream_sleep_age_steps_bucket{le="+Inf",table="user"}'
        assert float(values[bucket]) == latest["rows_asleep"]
        assert float(values['slipstream_alarm{alarm="age",table="user"}']) == 0
        wakes = [v for k, v in values.items() if k.startswith("slipstream_wakes_total")]
        assert len(wakes) == 6 and sum(map(float, wakes)) > 0
        taken = SlipstreamMonitor(prometheus_port=monitor.port)
        with pytest.raises(OSError, match=f"cannot listen at 0.0.0.0:{monitor.port}"):
            trained(taken, epochs=1)
    finally:
        monitor.close()
    assert monitor.port is None


def test_a_missing_package_is_named_with_its_extra(monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "prometheus_client"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with pytest.raises(ImportError, match=r"pip install .tf_slipstream\[monitor\]"):
        SlipstreamMonitor(prometheus_port=0)
    SlipstreamMonitor(log_dir="never made")


def test_an_alarm_acts_once_while_its_limit_is_passed(caplog):
    events = []
    alarms = [Alarm("share", above=0.01, action=events.append), Alarm("age", above=1e9)]
    monitor = SlipstreamMonitor(every=4, alarms=alarms)
    with caplog.at_level(logging.WARNING, "tf_slipstream"):
        trained(monitor, epochs=4)
    assert len(events) == 1 and events == monitor.events
    assert events[0].watch == "share" and events[0].table == "user" and events[0].value > 0.01
    assert "limit 0.01" in events[0].message and not caplog.records


def test_an_alarm_is_a_line_of_the_log_by_default(caplog):
    with caplog.at_level(logging.WARNING, "tf_slipstream"):
        trained(SlipstreamMonitor(every=4, alarms={"age": 0}))
    (record,) = caplog.records
    assert "alarm 'age'" in record.message and "table 'user'" in record.message


def test_the_defaults_are_silent_where_nothing_is_wrong(caplog):
    with caplog.at_level(logging.WARNING, "tf_slipstream"):
        monitor = SlipstreamMonitor(every=4)
        trained(monitor, epochs=4)
    assert not caplog.records and not monitor.events


def test_an_alarm_can_end_the_training():
    monitor = SlipstreamMonitor(every=4, alarms=[Alarm("share", 0.01, "raise")])
    with pytest.raises(AlarmError, match="of lookups are deferred") as raised:
        trained(monitor, epochs=4)
    assert raised.value.event.step == monitor.latest["user"]["step"]


def test_a_loss_that_rises_or_is_not_finite_is_told():
    monitor = SlipstreamMonitor(alarms=["loss"])
    model = sleepy_model()
    model.fit(IDS, LABELS, epochs=1, verbose=0)
    rng = np.random.default_rng(0)
    for loss in 0.5 + 0.001 * rng.standard_normal(30):
        monitor.record(model, loss=loss)
    assert not monitor.events
    for loss in 0.8 + 0.001 * rng.standard_normal(5):
        monitor.record(model, loss=loss)
    assert len(monitor.events) == 1 and 0.05 < monitor.events[0].value < 1
    monitor.record(model, loss=math.nan)
    assert monitor.events[-1].value == math.inf


def test_a_row_that_nobody_looks_up_any_more_raises_the_age_alarm():
    model = sleepy_model()
    monitor = SlipstreamMonitor(alarms={"age": 50})
    model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, shuffle=False)
    some = np.where(IDS == 3, 4, IDS)
    for seen in (IDS, some, some, some, some, some):
        # `train_on_batch`, because the end of `fit` wakes every row.
        for begin in range(0, len(IDS), 16):
            model.train_on_batch(seen[begin : begin + 16], LABELS[begin : begin + 16])
        monitor.record(model)
    assert [event.watch for event in monitor.events] == ["age"]
    assert 50 < monitor.events[0].value


def test_waking_every_row_is_counted_with_its_cause():
    causes = []

    class Wake(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            if batch == 20:
                self.model.optimizer.wake_all()
            causes.append(dict(monitor.latest.get("user", {})))

    monitor = SlipstreamMonitor(every=1)
    policy = StalenessPolicy(
        min_updates=2, updates_per_sleep=1, window=2, threshold=1e9, refresh_every=30
    )
    model = sleepy_model()
    model.optimizer.policy = policy
    rows = np.tile(IDS, (3, 1))
    model.fit(rows, np.tile(LABELS, 3), batch_size=16, verbose=0, callbacks=[Wake(), monitor])
    by_step = {one["step"]: one for one in causes if one}
    asked = [step for step, one in by_step.items() if one["wakes_asked"]]
    assert asked == [21]
    assert [step for step, one in by_step.items() if one["wakes_refresh"]] == [30]
    assert sum(one["wakes_schedule"] + one["wakes_batches"] for one in by_step.values()) > 10


def test_replicas_hold_their_parts_together():
    with strategy_of(2).scope():
        model = sleepy_model()
    monitor = SlipstreamMonitor(every=4)
    model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=[monitor])
    latest = monitor.latest["user"]
    assert latest["step"] == 32 and latest["rows_asleep"] > 0
    assert latest["held_norm_max"] > 0


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"every": 0}, "`every` must be"),
        ({"prometheus_port": 70_000}, "`prometheus_port` must be"),
        ({"alarms": ["ages"]}, "`watch` must be one of"),
        ({"alarms": {"age": -1}}, "`above` must be"),
        ({"alarms": [Alarm]}, "`watch` must be"),
        ({"alarms": 3}, "`alarms` must be"),
    ],
)
def test_a_value_outside_its_range_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        SlipstreamMonitor(**arguments)


def test_another_optimizer_is_an_error():
    model = sleepy_model()
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="SlipstreamMonitor needs .* SlipstreamOptimizer"):
        model.fit(IDS, LABELS, verbose=0, callbacks=[SlipstreamMonitor()])


def test_a_table_without_a_policy_is_shown_too(tmp_path):
    model = keras.Sequential(
        [
            keras.Input([2], dtype="int64"),
            SlipstreamEmbedding(10, 4, policy=None, name="user"),
            keras.layers.Flatten(),
            keras.layers.Dense(1, activation="sigmoid"),
        ]
    )
    model.compile(SlipstreamOptimizer(keras.optimizers.Adam()), loss="binary_crossentropy")
    monitor = SlipstreamMonitor(log_dir=tmp_path, every=4, prometheus_port=("127.0.0.1", 0))
    try:
        model.fit(IDS, LABELS, batch_size=16, verbose=0, callbacks=[monitor])
        assert 'slipstream_rows{table="user"} 10.0' in page_of(monitor)
    finally:
        monitor.close()
    assert monitor.latest["user"]["num_lookups"] == 512
    assert monitor.latest["user"]["rows_asleep"] == 0
    assert "slipstream/user/num_lookups" in events_of(tmp_path)[0]


def test_several_steps_in_one_call_are_counted():
    monitor = SlipstreamMonitor(every=8)
    model = sleepy_model()
    model.compile(model.optimizer, loss="binary_crossentropy", steps_per_execution=4)
    seen = []

    class Look(keras.callbacks.Callback):
        def on_train_batch_end(self, batch, logs=None):
            seen.append(monitor.latest.get("user", {}).get("step"))

    model.fit(IDS, LABELS, batch_size=16, verbose=0, callbacks=[monitor, Look()])
    assert seen == [None, 8, 8, 16]


def test_a_loop_of_ones_own_records_by_the_optimizer():
    model = sleepy_model()
    monitor = SlipstreamMonitor()
    for _ in range(3):
        model.train_on_batch(IDS[:16], LABELS[:16])
        monitor.record(model.optimizer, loss=0.5)
    assert monitor.latest["user"]["step"] == 3
    again = monitor.latest
    monitor.record(model.optimizer)  # No step since: no reading.
    assert monitor.latest is again
