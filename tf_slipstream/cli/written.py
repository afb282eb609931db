"""Files that a subcommand writes beside what it prints."""

import os


def write_text(path, text):
    """Writes a file, whole or not at all: a full disk leaves nothing behind."""
    part = f"{path}.part"
    try:
        with open(part, "w", encoding="utf-8") as stream:
            stream.write(text)
        os.replace(part, path)
    except OSError:
        if os.path.exists(part):
            os.remove(part)
        raise
