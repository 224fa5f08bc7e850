"""Which shards a spelling names: a folder, a pattern, a manifest of `moco pack`, here or at a URL."""

import json
import re
from glob import glob, has_magic
from pathlib import Path
from typing import Any

from moco.data.sources.remote import find_files, is_remote, read_if_there
from moco.runtime.errors import UserError, one_line

MANIFEST = "manifest.json"


def list_shards(spec: str) -> list[str]:
    """All shards that a spelling names, sorted within each pattern. Raises UserError if there are none."""
    found: list[str] = []
    for pattern in expand_braces(spec):
        if is_remote(pattern):
            found += _at_url(pattern if pattern.endswith(".tar") else f"{pattern.rstrip('/')}/*.tar")
            continue
        pattern = f"{pattern}/*.tar" if Path(pattern).is_dir() else pattern
        found += sorted(glob(pattern)) if has_magic(pattern) else [pattern] * Path(pattern).is_file()  # noqa: PTH207
    if compressed := [one for one in found if one.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))]:
        raise UserError(f"{compressed[0]}: is compressed, and cannot be read by offset: unpack it to .tar")
    if not found:
        raise UserError(f"shards:{spec}: no .tar files there")
    return found


def _at_url(pattern: str) -> list[str]:
    if not has_magic(pattern):
        return [pattern]
    try:
        return find_files(pattern)
    except OSError as error:
        raise UserError(f"{pattern}: cannot be listed: {one_line(error)}") from error


def expand_braces(pattern: str) -> list[str]:
    """`a-{08..10}-{x,y}` to a-08-x, a-08-y, a-09-x and so on, as a shell does."""
    match = re.search(r"\{([^{}]*)\}", pattern)
    if match is None:
        return [pattern]
    if numbers := re.fullmatch(r"(\d+)\.\.(\d+)", match[1]):
        first, last = numbers.groups()
        choices = [f"{i:0{len(first)}}" for i in range(int(first), int(last) + 1)]
    else:
        choices = match[1].split(",")
    before, after = pattern[: match.start()], pattern[match.end() :]
    return [whole for choice in choices for whole in expand_braces(before + choice + after)]


def read_manifest(folder: str) -> dict[str, Any] | None:
    """What `moco pack` wrote beside the shards, or None. Raises UserError if it cannot be read."""
    where = f"{folder.rstrip('/')}/{MANIFEST}"
    try:
        content = read_if_there(where)
        manifest = None if content is None else json.loads(content)
    except (OSError, ValueError) as error:
        raise UserError(f"{where}: cannot be read: {one_line(error)}") from error
    if content is None:
        return None
    if not isinstance(manifest, dict) or manifest.get("format") != "moco shards" or manifest.get("version") != 1:
        raise UserError(f"{where}: is not a manifest of shards, or of another version of moco")
    return manifest
