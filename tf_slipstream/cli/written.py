"""Files that a subcommand writes beside what it prints."""

import os


def write_text(path, text):
    """Writes a file, whole or not at all: a full disk leaves nothing behind."""
    part = _part_of(path)
    try:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(part, path)
    except OSError:
        if os.path.isfile(part):
            os.remove(part)
        raise


def _part_of(path):
    return f"{path}.part"
