"""Snapshots of hub repositories: only the file kinds that hold weights, tokenizers or tables, and clear errors."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import snapshot_download
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
    RevisionResolutionError,
    XetDownloadError,
)

from finetune.data.cache import disk_errors
from finetune.errors import SourceError
from finetune.files import sha256_file

# Never *.bin, *.pkl, *.pt or *.py: those can run code when they are loaded.
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.safetensors")
DATA_FILES = ("*.csv", "*.tsv", "*.jsonl", "*.parquet", "README.md")
# The hub's server names the files; a name that climbs out of the snapshot is not asked for.
_CLIMBING = ["../*", "*/../*", "/*"]


def hub_model_files(repo_id: str, revision: str | None) -> Path:
    """Snapshot of a model repository's top folder: configuration, tokenizer and safetensors weights.

    Raises:
        SourceError: see `_snapshot`; also a downloaded file that is damaged.
    """
    # Subfolders hold exports for other runtimes (onnx/, openvino/, ...), gigabytes that are not needed here.
    folder = _snapshot(repo_id, revision, "model", MODEL_FILES, ["*/*", *_CLIMBING])
    for path in sorted(folder.glob("*.safetensors")):
        # The hub's cache names a large file's blob after its SHA-256, so damage can be noticed without asking anyone.
        blob = path.resolve()
        if re.fullmatch(r"[0-9a-f]{64}", blob.name) and sha256_file(blob) != blob.name:
            raise SourceError(
                f"{path.name} of {repo_id} is damaged in the hub's cache: {blob} hasn't the SHA-256 that names it.",
                "Delete that file and run again; it is then fetched anew.",
            )
    return folder


def hub_data_files(repo_id: str, revision: str | None) -> Path:
    """Snapshot of a data set repository: CSV, TSV, JSONL and Parquet files and its card, nothing that runs.

    Raises:
        SourceError: see `_snapshot`; also when the repository has no such file.
    """
    folder = _snapshot(repo_id, revision, "dataset", DATA_FILES, _CLIMBING)
    if not any(path.suffix != ".md" for path in folder.rglob("*") if path.is_file()):
        raise SourceError(
            f"The data set {repo_id} on the hub has no CSV, TSV, JSONL or Parquet file.",
            "Scripts of data sets aren't run here; many have a Parquet copy: --set data.revision=refs/convert/parquet",
        )
    return folder


def _snapshot(repo_id: str, revision: str | None, repo_type: str, allow: Sequence[str], ignore: Sequence[str]) -> Path:
    """Download what is missing, or find it in the hub's own cache when there is no network.

    HF_ENDPOINT, HF_TOKEN, HF_HOME and HF_HUB_OFFLINE work as they do everywhere; no token reaches a message.

    Raises:
        SourceError: not an id, no such repository or revision, no permission, no network and not cached, no space.
    """
    # It becomes part of a path in the hub's cache, and may come from somebody else's card.
    if revision is not None and (not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._/-]*", revision) or ".." in revision):
        raise SourceError(f"{revision!r} is not a revision.", "Name a branch, a tag or a commit.")
    what = f"{'The data set' if repo_type == 'dataset' else 'The model'} {repo_id}"
    at = f" at revision {revision}" if revision else ""
    try:
        # Inside disk_errors only what is no hub error arrives, but HfHubHTTPError is an OSError too: caught first.
        with disk_errors(Path(HF_HUB_CACHE), "HF_HOME"):
            try:
                folder = Path(
                    snapshot_download(
                        repo_id,
                        repo_type=repo_type,
                        revision=revision,
                        allow_patterns=list(allow),
                        ignore_patterns=list(ignore),
                    )
                )
            except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, HTTPError) as error:
                raise _translated(error, what, at, repo_id, repo_type) from None
    except HFValidationError:
        raise SourceError(
            f"{repo_id!r} is not a file or folder here, and no hub id can look like it.",
            "Hub ids are NAME or OWNER/NAME; a folder is written ./folder.",
        ) from None
    except (ValueError, KeyError, TypeError, AssertionError, RevisionResolutionError, XetDownloadError):
        # A captive portal or a proxy that answers with a page of its own, or a download that doesn't add up.
        raise SourceError(
            f"{what}{at} can't be fetched: the hub's answer makes no sense.",
            "Check HF_ENDPOINT and the proxy; try again.",
        ) from None
    if not re.fullmatch(r"[0-9a-f]{40}", folder.name):
        raise SourceError(f"{what}{at}: the hub names the commit {folder.name!r}, which is none.", "Check HF_ENDPOINT.")
    return folder


def _translated(error: BaseException, what: str, at: str, repo_id: str, repo_type: str) -> SourceError:
    """A hub error as one sentence and its fix. Texts of the hub are left out: they may quote headers and addresses."""
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        error = error.__cause__
    if isinstance(error, GatedRepoError):
        return SourceError(
            f"{what} is gated: its owner wants each user to agree to terms first.",
            f"Agree on its page of the hub, then log in with `hf auth login` (or set HF_TOKEN). Id: {repo_id}",
        )
    if isinstance(error, RepositoryNotFoundError):
        return SourceError(
            f"{what} is not on the hub, or is private and you are not logged in.",
            "Check the spelling (OWNER/NAME); for a private one run `hf auth login`; a folder is written ./folder.",
        )
    if isinstance(error, RevisionNotFoundError):
        return SourceError(
            f"{what} has no revision{at.removeprefix(' at revision')}.", "Name a branch, a tag or a commit of it."
        )
    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        fix = "Log in again with `hf auth login`, or correct HF_TOKEN." if status in (401, 403) else "Try again later."
        return SourceError(f"{what}{at} can't be fetched: the hub answered with status {status}.", fix)
    command = f"hf download {repo_id}" + (" --repo-type dataset" if repo_type == "dataset" else "")
    command += at.replace(" at revision", " --revision")
    return SourceError(
        f"{what}{at} is not in the hub's cache, and the hub can't be reached.",
        f"With a network and without HF_HUB_OFFLINE, run: {command}",
    )
