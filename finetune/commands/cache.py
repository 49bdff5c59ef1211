"""`finetune cache`: what lies in the cache, whether it is whole, and how to get rid of it."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from finetune.errors import ConfigError, SourceError

if TYPE_CHECKING:
    from finetune.data.cache import Manifest

_ABOUT = """\
Models and data that come from PyPI wheels are fetched once, checked against the SHA-256 in the recipe or card, and
kept in one folder: $FINETUNE_CACHE, or `finetune` in your own cache folder. Everything in it can be fetched or made
again, so it may be emptied at any time. What comes from the hub lies in the hub's own cache (`hf cache ls`).
"""


def add(subparsers: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `finetune cache ls|verify|clear` to the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = subparsers.add_parser(
        "cache",
        help="list, check or empty the cache of fetched models and data",
        description=_ABOUT,
        epilog="Example:\n  finetune cache ls",
        formatter_class=raw,
    )
    parser.set_defaults(call=_ls)
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    ls = actions.add_parser(
        "ls",
        help="list what is there, with sizes",
        description="List what the cache holds, with sizes. `finetune cache` alone does the same.",
        epilog="Example:\n  finetune cache ls",
        formatter_class=raw,
    )
    ls.set_defaults(call=_ls)
    verify = actions.add_parser(
        "verify",
        help="hash every file again and compare",
        description="Hash every unpacked member and its wheel again. Runs do it too, for the files that they use; a\n"
        "damaged file is mended by the next run that needs it. Exit status 2 when something is damaged.",
        epilog="Example:\n  finetune cache verify",
        formatter_class=raw,
    )
    verify.set_defaults(call=_verify)
    clear = actions.add_parser(
        "clear",
        help="delete the cache's contents",
        description="Delete what the cache holds. Without --yes it only says what it would delete. A folder that does\n"
        "not carry this toolkit's CACHEDIR.TAG is never touched, nor are files in it that the toolkit didn't make.",
        epilog="Examples:\n  finetune cache clear\n  finetune cache clear --yes\n"
        "  FINETUNE_CACHE=/data/cache finetune cache clear --yes",
        formatter_class=raw,
    )
    clear.add_argument("--yes", action="store_true", help="really delete")
    clear.set_defaults(call=_clear)


def _ls(args: argparse.Namespace) -> int:
    from finetune.data.cache import FOLDERS, cache_dir

    root = cache_dir()
    total = 0
    rows = []
    for name in FOLDERS:
        for entry in sorted((root / name).iterdir()) if name != "locks" and (root / name).is_dir() else []:
            if entry.suffix == ".lock":
                continue
            size = _size(entry)
            total += size
            rows.append(f"{size / 1e6:>10,.1f} MB  {name}/{entry.name}")
    print(f"{root}")
    print("\n".join(rows) if rows else "  empty")
    if rows:
        print(f"{total / 1e6:>10,.1f} MB  in all")
    return 0


def _verify(args: argparse.Namespace) -> int:
    from finetune.data.cache import Manifest, cache_dir

    root = cache_dir()
    damaged: list[str] = []
    checked = 0
    for folder in sorted(path for path in (root / "pypi").glob("*") if path.is_dir()):
        manifest = Manifest.read(folder)
        if manifest is None:
            damaged.append(str(Manifest.path(folder)))
            print(f"DAMAGED  {Manifest.path(folder)}")
            continue
        for name in sorted(manifest.members):
            checked += 1
            if not manifest.is_whole(folder, name):
                damaged.append(str(folder / name))
                print(f"DAMAGED  {folder / name}")
        if wheel := _damaged_wheel(root, manifest):
            damaged.append(str(wheel))
            print(f"DAMAGED  {wheel}")
        elif not any(path.startswith(str(folder)) for path in damaged):
            print(f"whole    {folder} ({len(manifest.members)} members)")
    if damaged:
        raise SourceError(
            f"{len(damaged)} of the cache's files are damaged; the first is {damaged[0]}.",
            "Run again what uses them: they are unpacked or fetched anew. Or: finetune cache clear --yes",
        )
    print(f"{checked} members are what their hashes say, in {root}")
    return 0


def _damaged_wheel(root: Path, manifest: Manifest) -> Path | None:
    """The wheel that a manifest's members came from, if it is there and no copy has the pinned hash."""
    from finetune.data.wheels import Wheel
    from finetune.files import sha256_file

    candidates = Wheel(manifest.package, manifest.version, manifest.wheel_sha256).files_in(root / "wheels")
    whole = any(sha256_file(path) == manifest.wheel_sha256 for path in candidates)
    return None if whole or not candidates else candidates[0]


def _clear(args: argparse.Namespace) -> int:
    from finetune.data.cache import FOLDERS, TAG_NAME, cache_dir, disk_errors, is_our_cache

    root = cache_dir()
    if not root.exists():
        print(f"{root} does not exist: nothing to delete")
        return 0
    if not is_our_cache(root):
        raise ConfigError(
            f"{root} is not a cache of this toolkit: it has no {TAG_NAME} that says so. Nothing was deleted.",
            "Set FINETUNE_CACHE to the cache that you mean; `finetune cache ls` shows which one is in use.",
        )
    # A link in the place of one of our folders leads to something that isn't ours.
    ours = [root / name for name in FOLDERS if (root / name).is_dir() and not (root / name).is_symlink()]
    size = sum(_size(folder) for folder in ours)
    if not args.yes:
        names = ", ".join(folder.name for folder in ours) or "nothing"
        raise ConfigError(
            f"{size / 1e6:,.1f} MB in {root} would be deleted ({names}).",
            "If you mean it, run: finetune cache clear --yes",
        )
    with disk_errors(root):
        _refuse_while_in_use(root / "locks")
        for folder in ours:
            shutil.rmtree(folder)
        (root / TAG_NAME).unlink()
        left = sorted(os.listdir(root))
        if not left and not root.is_symlink():
            root.rmdir()
    print(f"deleted {size / 1e6:,.1f} MB from {root}")
    if left:
        print(f"left alone, since the toolkit didn't make it: {', '.join(left[:10])}", file=sys.stderr)
    return 0


def _refuse_while_in_use(locks: Path) -> None:
    import filelock

    for path in sorted(locks.glob("*.lock")) if locks.is_dir() else []:
        try:
            with filelock.FileLock(path, timeout=0):
                pass
        except filelock.Timeout:  # an OSError, so it is told apart before disk_errors sees it
            raise SourceError(
                f"Another process is fetching into the cache ({path.stem}). Nothing was deleted.",
                "Wait until it is done, or stop it.",
            ) from None


def _size(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count as nothing."""
    if path.is_symlink():
        return 0
    if path.is_file():
        return path.stat().st_size
    return sum(inner.lstat().st_size for inner in path.rglob("*") if inner.is_file() and not inner.is_symlink())
