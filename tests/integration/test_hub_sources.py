"""The real hub client against a stub hub on the loopback: what is asked for, what is kept, what is said."""

import hashlib
import http.server
import json
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytestmark = pytest.mark.integration

COMMIT = "0123456789abcdef0123456789abcdef01234567"
TOKEN = "hf_canaryCANARYcanaryCANARYcanary0000"
HEADER = json.dumps({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}).encode()
WEIGHTS = struct.pack("<Q", len(HEADER)) + HEADER + bytes(8)
MODEL = {
    "config.json": b'{"model_type": "bert"}',
    "vocab.txt": b"[PAD]\n",
    "model.safetensors": WEIGHTS,
    "pytorch_model.bin": b"\x80\x04evil",
    "modeling_evil.py": b"1/0",
    "onnx/model.json": b"{}",
    "../../../../climbed.json": b"{}",
    "a/../../../../../climbed.json": b"{}",
}
TABLES = {
    "README.md": b"---\nlicense: mit\n---\n",
    "data/train.csv": b"text,label\n",
    "test.parquet": b"PAR1",
    "load.py": b"1/0",
    "more.pkl": b"\x80\x04evil",
    "../../../../climbed.csv": b"x",
}


@dataclass
class Hub:
    """What the stub serves, and what it was asked."""

    url: str = ""
    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    status: int = 0
    code: str = ""
    page: bytes = b""
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def hub() -> Iterator[Hub]:
    state = Hub(repos={"models/acme/bert": MODEL, "datasets/acme/reviews": TABLES})

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.answer(body=False)

        def do_GET(self) -> None:
            self.answer(body=True)

        def answer(self, body: bool) -> None:
            path = unquote(urlsplit(self.path).path)
            state.asked.append(path)
            status, content, headers = respond(state, path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), "X-Repo-Commit": COMMIT, **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if body:
                self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    state.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield state
    server.shutdown()
    thread.join()
    server.server_close()


def respond(state: Hub, path: str) -> tuple[int, bytes, dict[str, str]]:
    """Status, body and headers as the hub's own interface gives them."""
    if state.page:
        return 200, state.page, {"Content-Type": "text/html"}
    if state.status:
        return state.status, b"{}", {"X-Error-Code": state.code, "X-Error-Message": "no"}
    for repo, files in state.repos.items():
        below = f"/api/{repo}/"
        if path.startswith((f"{below}revision/", f"{below}tree/")) and path.rpartition("/")[2] not in ("main", COMMIT):
            return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}
        if path.startswith(f"{below}revision/"):
            siblings = [{"rfilename": name} for name in files]
            return 200, json.dumps({"id": repo.split("/", 1)[1], "sha": COMMIT, "siblings": siblings}).encode(), {}
        if path.startswith(f"{below}tree/"):
            entries = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40} for name, content in files.items()
            ]
            return 200, json.dumps(entries).encode(), {"Content-Type": "application/json"}
        prefix = f"/{repo.removeprefix('models/')}/resolve/{COMMIT}/"
        if path.startswith(prefix) and (content := files.get(path.removeprefix(prefix))) is not None:
            return 200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
    return 404, b"{}", {"X-Error-Code": "RepoNotFound"}


def resolve(tmp_path: Path, expression: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Evaluate one call in a new process: the hub client reads its environment when it is imported."""
    code = (
        "import sys\nfrom finetune.errors import FinetuneError\n"
        "from finetune.data.sources import resolve_model, hub_data_files\n"
        f"try:\n    print({expression})\nexcept FinetuneError as error:\n    sys.exit(str(error))\n"
    )
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HUGGING"))}
    env = keep | {"HF_HOME": str(tmp_path / "hf"), "HF_TOKEN": TOKEN, "HF_HUB_DISABLE_TELEMETRY": "1"} | variables
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done


def files_below(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())


def test_a_model_is_fetched_pinned_and_then_found_offline(hub: Hub, tmp_path: Path) -> None:
    call = "(m := resolve_model('acme/bert', None)).path, m.revision, m.sha256, sep='\\n'"
    done = resolve(tmp_path, call, HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    path, revision, digest = done.stdout.split()
    assert revision == COMMIT
    assert digest == hashlib.sha256(WEIGHTS).hexdigest()
    assert files_below(Path(path)) == ["config.json", "model.safetensors", "vocab.txt"]
    assert not list(tmp_path.rglob("climbed*"))
    assert not [asked for asked in hub.asked if asked.endswith((".bin", ".py")) or "climbed" in asked]
    asked = len(hub.asked)
    offline = resolve(tmp_path, call, HF_ENDPOINT=hub.url, HF_HUB_OFFLINE="1")
    unreachable = resolve(tmp_path, call, HF_ENDPOINT="http://127.0.0.1:9")
    assert offline.stdout == unreachable.stdout == done.stdout
    assert len(hub.asked) == asked


def test_tables_and_card_of_a_data_set_and_nothing_that_runs(hub: Hub, tmp_path: Path) -> None:
    done = resolve(tmp_path, "hub_data_files('acme/reviews', 'main')", HF_ENDPOINT=hub.url)
    assert done.returncode == 0, done.stderr
    assert files_below(Path(done.stdout.strip())) == ["README.md", "data/train.csv", "test.parquet"]
    assert not list(tmp_path.rglob("climbed*"))


def test_damage_in_the_hubs_cache_is_noticed(hub: Hub, tmp_path: Path) -> None:
    done = resolve(tmp_path, "resolve_model('acme/bert', None).path", HF_ENDPOINT=hub.url)
    blob = (Path(done.stdout.strip()) / "model.safetensors").resolve()
    blob.write_bytes(WEIGHTS[:-1] + b"\1")
    again = resolve(tmp_path, "resolve_model('acme/bert', None).path", HF_ENDPOINT=hub.url)
    assert again.returncode == 1
    assert f"{blob} hasn't the SHA-256 that names it" in again.stderr


@pytest.mark.parametrize(
    ("call", "status", "code", "said"),
    [
        ("resolve_model('acme/brt', None)", 0, "", "acme/brt is not on the hub, or is private"),
        ("resolve_model('acme/bert', 'v9')", 0, "", "acme/bert has no revision v9"),
        ("resolve_model('acme/bert', '../../x')", 0, "", "'../../x' is not a revision"),
        ("resolve_model('acme/bert', None)", 401, "GatedRepo", "acme/bert is gated"),
        ("resolve_model('acme/bert', None)", 403, "GatedRepo", "acme/bert is gated"),
        ("resolve_model('acme/bert', None)", 401, "", "the hub answered with status 401"),
        ("resolve_model('acme/bert', None)", 500, "", "the hub answered with status 500"),
        ("hub_data_files('acme/review', None)", 0, "", "The data set acme/review is not on the hub"),
        ("resolve_model('a//b', None)", 0, "", "is not a file or folder here, and no hub id"),
    ],
)
def test_each_refusal_is_one_clear_message(
    hub: Hub, tmp_path: Path, call: str, status: int, code: str, said: str
) -> None:
    hub.status, hub.code = status, code
    done = resolve(tmp_path, call, HF_ENDPOINT=hub.url)
    assert done.returncode == 1
    assert said in done.stderr


def test_a_model_without_safetensors(hub: Hub, tmp_path: Path) -> None:
    hub.repos["models/acme/bert"] = {name: MODEL[name] for name in ("config.json", "pytorch_model.bin")}
    done = resolve(tmp_path, "resolve_model('acme/bert', None)", HF_ENDPOINT=hub.url)
    assert "acme/bert has no safetensors weights" in done.stderr


def test_a_data_set_of_scripts_only(hub: Hub, tmp_path: Path) -> None:
    hub.repos["datasets/acme/reviews"] = {name: TABLES[name] for name in ("README.md", "load.py")}
    done = resolve(tmp_path, "hub_data_files('acme/reviews', None)", HF_ENDPOINT=hub.url)
    assert "has no CSV, TSV, JSONL or Parquet file" in done.stderr


def test_a_log_in_page_instead_of_the_hub(hub: Hub, tmp_path: Path) -> None:
    hub.page = b"<html>Please log in to this hotel's network</html>"
    done = resolve(tmp_path, "resolve_model('acme/bert', None)", HF_ENDPOINT=hub.url)
    assert done.returncode == 1
    assert "the hub's answer makes no sense" in done.stderr


@pytest.mark.parametrize("offline", ["0", "1"])
def test_without_a_network_the_one_command_is_named(tmp_path: Path, offline: str) -> None:
    done = resolve(
        tmp_path, "hub_data_files('acme/reviews', 'v1')", HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE=offline
    )
    assert done.returncode == 1
    assert "run: hf download acme/reviews --repo-type dataset --revision v1" in done.stderr
