"""What a person is told of a failure."""

import errno

# By errno: what is wrong, where `{}` is a file; what to do.
_SENTENCES = {
    errno.ENOENT: ("there is no {}", "Check the path."),
    errno.ENOTDIR: ("{} is within something that is no folder", "Check the path."),
    errno.EISDIR: ("{} is a folder", "Name a file."),
    errno.EACCES: ("{} may not be read or written", "Change its permissions, or name another."),
    errno.EPERM: ("{} may not be read or written", "Change its permissions, or name another."),
    errno.EROFS: ("{} is on a disk that is read-only", "Name a path on another."),
    errno.ENOSPC: ("no space is left for {}", "Free some on its disk, or name a path on another."),
    errno.EDQUOT: ("your quota leaves no space for {}", "Remove something, or name another path."),
    errno.EIO: ("the disk failed at {}", "Copy the file anew, or look after the disk."),
}


def sentence_of(error):
    """Returns what went wrong and what to do, of an exception or a text."""
    number = getattr(error, "errno", None)
    if not isinstance(error, OSError) or number not in _SENTENCES:
        return " ".join(str(error).split())
    wrong, advice = _SENTENCES[number]
    # What is printed has no name.
    name = "the output" if error.filename is None else error.filename
    return f"{wrong.format(name)}. {advice}"
