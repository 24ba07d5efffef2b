"""Names and versions of the files that a run leaves behind: `lengthwise.records/1` and the like."""

from __future__ import annotations

from pathlib import Path

from lengthwise.errors import InputError


class DamagedFileError(InputError):
    """A file of a run that is cut off or otherwise unreadable, and may be left out."""


def check_schema(found: object, known: str, path: Path) -> None:
    """Refuse a file of another kind, or one that a newer Lengthwise wrote.

    Args:
        found: what the file says it is, such as "lengthwise.records/1".
        known: the newest schema that the caller can read, in the same form.
        path: the file, for the message.

    Raises:
        InputError: the file cannot be read by this version.
    """
    known_name, known_version = known.rsplit("/", 1)
    name, _, version = found.rpartition("/") if isinstance(found, str) else ("", "", "")
    if name != known_name or not version.isdecimal():
        raise InputError(
            f"{path} is not a {known_name} file: give the folder that `lengthwise bench` wrote"
        )
    if int(version) > int(known_version):
        raise InputError(
            f"{path} has schema {found}, newer than this Lengthwise reads ({known}): "
            "pip install --upgrade lengthwise"
        )
