"""Checks what SkipHistory records."""

import pytest

from tests.callbacks.models import IDS, LABELS, sleepy_model
from tf_slipstream.callbacks import SkipHistory


def test_it_records_every_so_many_batches_and_at_the_end_of_epochs():
    history = SkipHistory(every=6)
    model = sleepy_model()
    model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=[history])
    records = history.history["user"]
    assert [record["step"] for record in records] == [6, 12, 16, 18, 24, 30, 32]
    assert [record["num_lookups"] for record in records] == [32 * r["step"] for r in records]
    assert records[-1]["num_deferred_lookups"] > records[0]["num_deferred_lookups"] >= 0
    assert records[-2]["num_stale_rows"] > 0


@pytest.mark.parametrize("every", [0, -1, 1.5, True])
def test_a_value_outside_its_range_is_named(every):
    with pytest.raises(ValueError, match="`every` must be"):
        SkipHistory(every=every)


def test_another_optimizer_is_an_error():
    model = sleepy_model()
    model.compile("sgd", loss="mse")
    with pytest.raises(ValueError, match="SkipHistory needs .* SlipstreamOptimizer"):
        model.fit(IDS, LABELS, verbose=0, callbacks=[SkipHistory()])
