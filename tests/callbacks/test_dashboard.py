"""Checks that the dashboard and the page on alarms speak of what there is."""

import json
import pathlib
import re

from tests.callbacks.models import IDS, LABELS, sleepy_model
from tests.callbacks.test_slipstream_monitor import page_of
from tf_slipstream import SlipstreamMonitor
from tf_slipstream.callbacks.alarms import WATCHED

DOCS = pathlib.Path(__file__).parents[2] / "docs" / "guide"


def test_every_metric_of_the_dashboard_is_served():
    monitor = SlipstreamMonitor(every=4, prometheus_port=0)
    try:
        model = sleepy_model()
        model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=[monitor])
        served = set(re.findall(r"^(slipstream_\w+)\{?", page_of(monitor), re.M))
    finally:
        monitor.close()
    dashboard = json.loads((DOCS / "grafana_dashboard.json").read_text())
    targets = [t["expr"] for panel in dashboard["panels"] for t in panel["targets"]]
    asked = {name for expr in targets for name in re.findall(r"slipstream_\w+", expr)}
    # Only parameter servers have caches.
    assert asked - served == {"slipstream_cache_hit_rate"}
    assert len(asked) > 12


def test_the_page_says_what_to_do_at_each_alarm():
    page = (DOCS / "watching.md").read_text()
    assert re.findall(r"^### (\w+)$", page, re.M) == list(WATCHED)


def test_the_page_names_what_a_reading_has():
    monitor = SlipstreamMonitor()
    model = sleepy_model()
    model.fit(IDS, LABELS, batch_size=16, epochs=2, verbose=0, callbacks=[monitor])
    page = (DOCS / "watching.md").read_text()
    for name in re.findall(r"`(\w+)`", page.split("| name | what it is |")[1].split("\n\n")[0]):
        if name not in ("batches", "max_age", "wake_all", "cache_hit_rate", "SkipGuard"):
            assert name in monitor.latest["user"], name
