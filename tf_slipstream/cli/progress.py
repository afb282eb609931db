"""How far long work has come, on stderr.

Not `tqdm`, which a serving host would need for this one line.
"""

import sys
import time

_SECONDS_BETWEEN = 0.1


class Progress:
    """Shows what is being done, on one line that it writes over.

    Args:
        wanted: Whether to show it; None: if a person is watching.

    Call arguments:
        what: What is being done.
        done: Bytes done.
        total: Bytes in all.
    """

    def __init__(self, wanted=None):
        self._is_terminal = sys.stderr.isatty()
        self._is_shown = self._is_terminal if wanted is None else wanted
        self._shown_at = 0.0
        self._what = None

    def __call__(self, what, done, total):
        now = time.monotonic()
        is_news = what != self._what or done >= total
        if not self._is_shown or not (is_news or now - self._shown_at > _SECONDS_BETWEEN):
            return
        self._what, self._shown_at = what, now
        percent = 100 if total == 0 else 100 * done // total
        line = f"{what}: {done / 1e6:,.0f} of {total / 1e6:,.0f} MB ({percent}%)"
        end = "" if self._is_terminal else "\n"
        print(
            f"\r\033[K{line}" if self._is_terminal else line, end=end, file=sys.stderr, flush=True
        )

    def close(self):
        """Clears the line."""
        if self._is_shown and self._is_terminal and self._what is not None:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
