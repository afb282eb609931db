"""Calls from TensorFlow's threads into Python, which have to end before Python does."""

import atexit
import contextlib
import threading
import time

# Longer than a thread of TensorFlow's takes from one call to the next, on a busy machine too.
_QUIET_SECONDS = 0.1


class PythonCalls:
    """Counts the calls that a `tf.numpy_function` gets, and lets them end before Python does.

    Python kills a thread that asks for its lock once the process has begun to end. TensorFlow does
    not know: it waits for that thread when it deletes the iterator that the thread reads ahead for,
    and the process never ends. An uncaught error makes this likely, because its traceback keeps the
    iterator until then. A call that begins still later does no harm; TensorFlow refuses it.
    """

    def __init__(self):
        self._lock = threading.Lock()
        self._num_begun = 0
        self._num_ended = 0
        self._is_closed = False

    @contextlib.contextmanager
    def one(self):
        """Counts a call. The value says whether it may do its work, else it is to end its pass."""
        with self._lock:
            self._num_begun += 1
        try:
            yield not self._is_closed
        finally:
            with self._lock:
                self._num_ended += 1

    def end_before_python(self):
        """Has `close` called first when Python ends; may be called often."""
        atexit.unregister(self.close)
        atexit.register(self.close)

    def close(self):
        """Ends every pass, and waits until calls have ended and none has begun for a while."""
        self._is_closed = True
        seen = None
        while self._num_begun != self._num_ended or seen != self._num_ended:
            seen = self._num_ended
            time.sleep(_QUIET_SECONDS)
