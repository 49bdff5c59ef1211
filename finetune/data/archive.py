"""Unpack named members of a zip archive (a wheel) that nobody has to trust: names, links, sizes are checked first."""

from __future__ import annotations

import difflib
import fnmatch
import hashlib
import re
import shutil
import stat
import unicodedata
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.cache import disk_errors, whole_file
from finetune.errors import SourceError

_CHUNK = 1 << 20
# Reserved on Windows, where opening "aux.json" talks to a device.
_DEVICE = re.compile(r"(?i)(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?")


@dataclass(frozen=True)
class Limits:
    """How much an archive may hold before it is taken for a bomb."""

    members: int = 200_000
    unpacked_bytes: int = 64 << 30
    """Sum over the members that are asked for."""
    ratio: int = 200
    """Unpacked over packed bytes of one member; real text reaches about 20, a deflate bomb 1,032."""
    ratio_from_bytes: int = 4 << 20
    """Members that unpack to less than this can't hurt and aren't held to the ratio."""


def unpack(
    archive: Path, wanted: Sequence[str], into: Path, *, only: Sequence[str] = (), limits: Limits | None = None
) -> dict[str, str]:
    """Unpack members one by one; each appears whole (temp, fsync, rename) or not at all.

    Every check runs before the first byte is written. Modes and times in the archive are ignored: nothing unpacked
    is executable.

    Args:
        archive: a zip file, for example a wheel.
        wanted: member names; a name that ends in "/" takes all members below it.
        into: folder that receives the members under their own names.
        only: patterns that the base name of a member below a wanted folder must match, if any are given.

    Returns:
        Member name -> SHA-256 of its bytes.

    Raises:
        SourceError: not a zip, damaged, hostile (see `check`), a wanted member is missing, or the disk is full.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            infos = check(archive, opened.infolist(), limits or Limits())
            chosen = _choose(archive.name, infos, wanted, only, limits or Limits())
            _check_space(archive.name, sum(info.file_size for info in chosen), into)
            return {info.filename: _unpack_one(opened, info, into) for info in chosen}
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, UnicodeDecodeError) as error:
        raise _refusal(archive.name, f"is not an archive that can be read ({error})") from error


def check(archive: Path, infos: Sequence[zipfile.ZipInfo], limits: Limits) -> list[zipfile.ZipInfo]:
    """Refuse an archive that no honest wheel looks like; return its files, folders left out.

    One hostile member refuses the whole archive, also when it is not asked for: whoever made it is not to be trusted.

    Raises:
        SourceError: names that leave the folder, absolute or device names, links and other special files, encrypted
            members, a name twice, overlapping members, odd compression, too many members or too high a ratio.
    """
    if len(infos) > limits.members:
        raise _refusal(archive.name, f"has {len(infos):,} members, more than {limits.members:,}")
    # Honest members lie side by side, so packed sizes add up to less than the file; overlapping ones (a bomb) don't.
    if sum(info.compress_size for info in infos) > archive.stat().st_size:
        raise _refusal(archive.name, "has members that overlap")
    seen: set[str] = set()
    for info in infos:
        if reason := _fault(info, limits):
            raise _refusal(archive.name, f"has the member {info.orig_filename!r}, which {reason}")
        if info.filename in seen:
            raise _refusal(archive.name, f"has the member {info.filename!r} twice")
        seen.add(info.filename)
    return [info for info in infos if not info.is_dir()]


def _fault(info: zipfile.ZipInfo, limits: Limits) -> str:
    """What is wrong with one entry of the archive's directory, or ""."""
    name = info.filename
    parts = (name[:-1] if info.is_dir() else name).split("/")
    kind = stat.S_IFMT(info.external_attr >> 16)
    if name != info.orig_filename or any(ord(char) < 32 or ord(char) == 127 for char in name):
        return "has control characters in its name"
    if name.startswith("/") or "\\" in name or ":" in name:
        return "has an absolute name or one of another system"
    if any(part in ("", ".", "..") for part in parts):
        return "leaves the folder"
    if any(_DEVICE.fullmatch(part) or part.endswith((" ", ".")) or len(part.encode()) > 255 for part in parts):
        return "has a name that not every system can hold"
    if kind not in (0, stat.S_IFDIR if info.is_dir() else stat.S_IFREG):
        return "is a link or a special file"
    if info.flag_bits & 0x41:
        return "is encrypted"
    if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return f"uses compression method {info.compress_type}"
    if info.file_size > limits.ratio_from_bytes and info.file_size > limits.ratio * max(info.compress_size, 1):
        return f"unpacks to more than {limits.ratio} times its packed size"
    return ""


def _choose(
    archive: str, infos: Sequence[zipfile.ZipInfo], wanted: Sequence[str], only: Sequence[str], limits: Limits
) -> list[zipfile.ZipInfo]:
    """The entries behind the wanted names, each once.

    Raises:
        SourceError: a wanted name is not there, two chosen names are one on some systems, or they are too large.
    """
    by_name = {info.filename: info for info in infos}
    chosen: dict[str, zipfile.ZipInfo] = {}
    for want in wanted:
        if want.endswith("/"):
            below = {name: info for name, info in by_name.items() if name.startswith(want) and _matches(name, only)}
        else:
            below = {want: by_name[want]} if want in by_name else {}
        if not below:
            near = difflib.get_close_matches(
                want, [*by_name, *{name.rpartition("/")[0] + "/" for name in by_name}], n=1
            )
            raise SourceError(
                f"{archive} has no member {want}" + (f" that matches {', '.join(only)}." if only else "."),
                f"Did you mean {near[0]}?" if near else "List its members with: python -m zipfile -l FILE",
            )
        chosen |= below
    folded: dict[str, str] = {}
    for name in chosen:
        other = folded.setdefault(unicodedata.normalize("NFC", name).casefold(), name)
        if other != name:
            raise _refusal(archive, f"has members that are one file on some systems: {other!r} and {name!r}")
        parents = (name[:at] for at, char in enumerate(name) if char == "/")
        if clash := next((parent for parent in parents if parent in chosen), None):
            raise _refusal(archive, f"has a member {clash!r} that is a file and a folder")
    total = sum(info.file_size for info in chosen.values())
    if total > limits.unpacked_bytes:
        raise _refusal(archive, f"would unpack to {total:,} bytes, more than {limits.unpacked_bytes:,}")
    return list(chosen.values())


def _matches(name: str, only: Sequence[str]) -> bool:
    return not only or any(fnmatch.fnmatchcase(name.rpartition("/")[2], pattern) for pattern in only)


def _check_space(archive: str, total: int, into: Path) -> None:
    """Say that the disk is too small before it is filled, not after."""
    with disk_errors(into):
        into.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(into).free
    if total > free:
        raise SourceError(
            f"No space left for {archive} in {into}: {total / 1e6:,.0f} MB are needed, {free / 1e6:,.0f} MB are free.",
            "Free some space, or set FINETUNE_CACHE to a folder on another disk.",
        )


def _unpack_one(opened: zipfile.ZipFile, info: zipfile.ZipInfo, into: Path) -> str:
    """Write one checked member and return its SHA-256."""
    path = into.joinpath(*info.filename.split("/"))
    digest = hashlib.sha256()
    with disk_errors(into):
        path.parent.mkdir(parents=True, exist_ok=True)
        # The names are clean, but a link that someone put into the target folder would still lead outside.
        if path.parent.resolve() != into.resolve().joinpath(*info.filename.split("/")[:-1]):
            raise SourceError(
                f"{path.parent} leads out of {into} through a link.", f"Remove the link, or the whole folder {into}."
            )
        # zipfile stops at the declared size and checks the CRC, so a member that lies about its size can't run on.
        with opened.open(info) as source, whole_file(path) as target:
            while chunk := source.read(_CHUNK):
                digest.update(chunk)
                target.write(chunk)
    return digest.hexdigest()


def _refusal(archive: str, reason: str) -> SourceError:
    return SourceError(
        f"{archive} {reason}.", "Nothing was unpacked. Use a source that you trust, and say so to whoever published it."
    )
