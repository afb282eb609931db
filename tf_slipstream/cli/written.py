"""Files that a subcommand writes beside what it prints."""

import contextlib
import os
import secrets

from tf_slipstream.delta.file_ranges import naming


def write_text(path, text):
    """Writes a file, in place of one that is there, whole or not at all.

    A full disk, or an interrupt, leaves what was there.
    """
    # A name that nobody knows beforehand: no link that waits there is followed.
    part = f"{path}.{secrets.token_hex(8)}.part"
    try:
        with naming(path), open(part, "x", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(part)
        raise
