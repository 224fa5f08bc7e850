"""What --data takes: a word, and after a colon a path, a pattern or a name."""

from collections.abc import Mapping

from moco.runtime.errors import UserError, did_you_mean


def split_spec(spec: str, spellings: Mapping[str, str], what: str) -> tuple[str, str]:
    """The word before the colon and what stands behind it.

    Args:
        spec: such as "folder:PATH".
        spellings: of each word that there is, how it is written: "folder:PATH", or "shapes".
        what: what the words are, for the message.

    Raises UserError for another word, or where nothing stands behind one that needs it.
    """
    name, _, argument = spec.partition(":")
    if name not in spellings:
        known = ", ".join(spellings.values())
        raise UserError(f"--data {spec}: no such {what}{did_you_mean(name, spellings)} (there are {known})")
    if not argument and (placeholder := spellings[name].partition(":")[2]):
        raise UserError(f"--data {spec}: a {placeholder.lower()} is missing: {spellings[name]}")
    return name, argument
