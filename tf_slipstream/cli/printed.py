"""Text that a terminal only shows."""


def printable(text):
    r"""Returns a text with `\x1b` and the like in place of characters that are no letter or sign.

    Names come from files that others wrote, and a terminal obeys some characters.
    """
    return "".join(
        character if character.isprintable() else ascii(character)[1:-1] for character in text
    )


def unverified_lines(is_verified, unverified):
    """Returns what to say of a result's `is_verified` and `unverified`: a list of lines."""
    if not is_verified:
        return ["  not verified: --no-verify was given"]
    if unverified:
        return [f"  not verified, having no checksum: {printable(', '.join(unverified))}"]
    return []
