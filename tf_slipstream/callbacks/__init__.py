"""Keras callbacks that watch what skipping does while a model trains.

Belongs here: subclasses of Keras's `Callback`, and what they alone need; no decision about a row.
To add one: a file of its own, its name here and in the package's `__all__`.
"""

from tf_slipstream.callbacks.alarms import Alarm, AlarmError, AlarmEvent
from tf_slipstream.callbacks.skip_guard import SkipGuard
from tf_slipstream.callbacks.skip_history import SkipHistory
from tf_slipstream.callbacks.slipstream_monitor import SlipstreamMonitor

__all__ = [
    "Alarm",
    "AlarmError",
    "AlarmEvent",
    "SkipGuard",
    "SkipHistory",
    "SlipstreamMonitor",
]
