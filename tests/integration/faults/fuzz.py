"""The command line given malformed files and settings: one message and exit status 2, no traceback, no hang."""

from __future__ import annotations

import contextlib
import io
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.csv
import pyarrow.parquet
import yaml
from PIL import Image
from sklearn.datasets import load_digits

from finetune.checkpoint import MANIFEST
from finetune.cli import main
from finetune.files import sha256_file
from finetune.recipe import load_recipe, override, settings_of
from finetune.recipe_files import recipes_folder
from tests.integration.faults import stores
from tests.integration.faults.records import Outcome, Records
from tests.trainers import EXACT

SLOWEST_S = 5.0
COMMAND_SLOWEST_S = 30.0  # a process imports what the first needs; most of it is torch
# What breaks parsers: control characters, halves of UTF-8, huge numbers, other languages' syntax.
SPLINTERS = (
    b"\0", b"\xff\xfe", b"\xc3", b'"', b"'", b"\n\n", b"\r", b"\t", b",,", b"{", b"}", b"[" * 2000, b"]", b"---\n",
    b"&a *a", b"!!python/object/apply:os.system [id]", b"!!binary |", b"<<: *x", b"NaN", b"-Infinity", b"1e999",
    b"9" * 400, b"null", b"true", b"../../etc/passwd", b"%s%n", b"${HOME}", b"\xef\xbb\xbf", b"\xf0\x9f\x98\x80",
    b"\xe2\x80\xae", b"finetune:", b"label", b"text", b"__class__", b"\x1b[2J", b"#" * 70000,
)  # fmt: skip
VALUES = (
    "", "nan", "inf", "-1", "0", "1e400", "9" * 30, "null", "None", "true", "[]", "{}", "[[]]", "\0", "a" * 5000,
    "../..",
    "~nobody/x", "/dev/null", "/", ".", "-", "--", "=", "é", "1,2", "auto", "pypi:", "pypi:x==1", "pypi:../x==1/y", "hf://x",
    "http://127.0.0.1:1/x", "1_000", "0x10", "1.5", "__import__('os')", "{a: b}", "*x", "!!python/none", "%", "\u202e",
)  # fmt: skip

WORDS = (
    "run", "bert_cls", "data", "check", "--data", "--seed", "--set", "--resume", "latest", "--adapter", "lora",
    "predict", "--text", "--file", "--out", "plan", "cp", "diff", "--output", "verify", "resume", "--updates", "2",
    "cache", "ls",
)  # fmt: skip


class HangError(BaseException):
    """Not an Exception, so that no handler in between takes it for its own."""


def run(records: Records, total: int, commands: int, work: Path) -> None:
    """In this process; and some of the same cases as real commands."""
    samples = _samples(work)
    records.run("fuzz", total, lambda number: _case(number, records.seed, samples, work / "fuzz"))
    # At random: each n-th would be of one kind where n is a multiple of the kinds.
    chosen = random.Random(f"commands {records.seed}").sample(range(total), commands)
    records.run("fuzzed commands", commands, lambda k: _command(chosen[k], records.seed, samples, work / "fuzz"))


def _samples(work: Path) -> dict[str, bytes]:
    """Well-formed files of every kind, from real rows."""
    real = stores.real_checkpoints(work)
    csv = real.parent / "reviews.csv"
    table = pyarrow.csv.read_csv(csv)
    parquet, sink = io.BytesIO(), table.to_pylist()
    pyarrow.parquet.write_table(table, parquet)
    card = "---\nlicense: cc-by-4.0\n" + yaml.safe_dump(
        {
            "finetune": {
                "source": {"path": ".", "files": {"all": "data.csv"}},
                "columns": {"text": "text", "label": "label"},
            }
        }
    )
    loaded = {"text": "text", "label": "label"}
    record = {
        "status": "completed", "task": "text-classification", "seed": 0,
        "recipe": {"name": "bert_cls", "origin": "packaged", "hash": "0" * 64},
        "config": json.loads((real / "update_00000004" / "state.json").read_text())["identity"]["settings"],
        "data": {"card": "reviews", "labels": ["a", "b"]}, "metrics": {}, "baselines": {}, "gains": {}, "versions": {},
    }  # fmt: skip
    return {
        "csv": csv.read_bytes()[:6000].rpartition(b"\n")[0] + b"\n",
        "tsv": "".join(f"{row['text']}\t{row['label']}\n" for row in [loaded, *sink[:40]]).encode(),
        "jsonl": "".join(json.dumps(row) + "\n" for row in sink[:40]).encode(),
        "parquet": parquet.getvalue(),
        "md": f"{card}---\nA card.\n".encode(),
        "py": (recipes_folder() / "bert_cls.py").read_bytes(),
        "run.json": json.dumps(record).encode(),
        **_images(),
        **{f"checkpoint/{path.name}": path.read_bytes() for path in sorted((real / "update_00000004").iterdir())},
    }


def _images() -> dict[str, bytes]:
    """A handwritten digit, in the formats that `data check` meets."""
    found = {}
    for suffix in ("png", "jpeg", "gif"):
        image, sink = Image.fromarray((load_digits().images[0] * 15).astype("uint8")).resize((32, 32)), io.BytesIO()
        image.save(sink, suffix)
        found[f"image/digit.{suffix}"] = sink.getvalue()
    return found


def _resumed(name: str, content: bytes, samples: dict[str, bytes], folder: Path, rng: random.Random) -> list[str]:
    """A run to go on with from a checkpoint of which one file is broken; in half of the cases its hash is made right.

    No training can begin: the record is that of another run than the checkpoint's.
    """
    checkpoint = folder / "run" / "checkpoints" / "update_00000004"
    checkpoint.mkdir(parents=True)
    for file, whole in samples.items():
        if file.startswith("checkpoint/"):
            (checkpoint / Path(file).name).write_bytes(whole)
    broken = checkpoint / name
    broken.write_bytes(content)
    if rng.random() < 0.5 and broken.name != MANIFEST:
        manifest = json.loads((checkpoint / MANIFEST).read_bytes())
        manifest["sha256"][broken.name] = sha256_file(broken)
        (checkpoint / MANIFEST).write_text(json.dumps(manifest))
    loaded = load_recipe("bert_cls")
    override(loaded, [*EXACT, f"data.source={folder.parent / 'real' / 'reviews.csv'}"])
    record = json.loads(samples["run.json"]) | {"status": "interrupted", "config": loaded.resolved(), "command": ""}
    (folder / "run" / "run.json").write_text(json.dumps(record))
    return ["run", "--resume", "run"]


def _case(number: int, seed: int, samples: dict[str, bytes], folder: Path) -> Outcome:
    argv = _arguments(number, seed, samples, folder)
    what = " ".join(argv)[:300]
    out, err = io.StringIO(), io.StringIO()
    before, began = os.getcwd(), time.monotonic()
    try:
        os.chdir(folder)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), _in_time(SLOWEST_S):
            status = main(argv)
    except SystemExit as error:  # argparse: its usage, its message, 2
        status = int(error.code or 0)
    except HangError:
        return Outcome("hang", f"{what}: over {SLOWEST_S} s")
    except BaseException as error:
        import traceback

        last = traceback.extract_tb(error.__traceback__)[-6:]
        where = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(last))
        return Outcome("traceback", f"{what}: {type(error).__name__}: {str(error)[:300]} at {where}")
    finally:
        os.chdir(before)
    if time.monotonic() - began > SLOWEST_S:
        return Outcome("hang", f"{what}: {time.monotonic() - began:.1f} s")
    return _judged(what, status, out.getvalue(), err.getvalue(), argv)


def _judged(what: str, status: int, out: str, err: str, argv: list[str]) -> Outcome:
    if "Traceback (most recent" in err + out:
        return Outcome("traceback", f"{what}: {err[-600:]}")
    if status == 0:
        return Outcome("still well formed")
    if status == 1 and argv[:2] == ["data", "check"] and out.strip():
        return Outcome("problems listed")
    if status != 2:
        return Outcome(f"status {status}", f"{what}: status {status}: {err[-300:]}")
    messages = [line for line in err.splitlines() if line.startswith("finetune: ") or ": error: " in line]
    return Outcome("one message", "" if len(messages) == 1 else f"{what}: {len(messages)} messages: {err[-400:]!r}")


def _command(number: int, seed: int, samples: dict[str, bytes], folder: Path) -> Outcome:
    """The same case as a command of its own; an argument with a NUL can't be given to one."""
    argv = [word.replace("\0", "") for word in _arguments(number, seed, samples, folder)]
    program = [sys.executable, "-c", "import sys; from finetune.cli import main; sys.exit(main(sys.argv[1:]))"]
    what = "command: " + " ".join(argv)[:300]
    try:
        done = subprocess.run([*program, *argv], cwd=folder, capture_output=True, text=True, timeout=COMMAND_SLOWEST_S)
    except subprocess.TimeoutExpired:
        return Outcome("hang", f"{what}: over {COMMAND_SLOWEST_S} s")
    return _judged(what, done.returncode, done.stdout, done.stderr, argv)


def _arguments(number: int, seed: int, samples: dict[str, bytes], folder: Path) -> list[str]:
    """The case's files, written to `folder`, and its command."""
    rng = random.Random(f"fuzz {seed} {number}")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    kinds = (*dict.fromkeys(name.partition("/")[0] for name in samples), "set", "set", "flags")
    kind = kinds[number % len(kinds)]
    if kind == "set":
        keys = _setting_names()
        key = (
            rng.choice(keys)
            if rng.random() < 0.8
            else _broken(rng.choice(keys).encode(), rng).decode("utf-8", "replace")
        )
        value = (
            rng.choice(VALUES)
            if rng.random() < 0.6
            else _broken(rng.choice(VALUES).encode(), rng).decode("utf-8", "replace")
        )
        return ["show", "bert_cls", "--set", f"{key}={value}" if rng.random() < 0.9 else key]
    if kind == "flags":
        # No source that would be fetched: what is tried here is the command line, not a registry.
        local = [value for value in VALUES if not value.startswith(("pypi:", "hf:"))]
        given = [rng.choice([*WORDS, *local]) for _ in range(rng.randrange(1, 6))]
        # Only what can't begin a long run: a resumed, missing run is refused first.
        return given if given[0] not in ("run", "plan", "verify") else [given[0], *given, "--resume", "nowhere"]
    name = rng.choice([name for name in samples if name.partition("/")[0] == kind])
    content = _broken(samples[name], rng)
    if kind == "checkpoint":
        return _resumed(Path(name).name, content, samples, folder, rng)
    if kind == "image":
        for place in range(20):
            path = folder / "photos" / "ab"[place % 2] / f"{place}{Path(name).suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(samples[name] if place else content)
        return ["data", "check", "photos"]
    if kind == "run.json":
        (folder / "run").mkdir()
        (folder / "run" / kind).write_bytes(content)
        return rng.choice(
            [["predict", "run", "--text", "good"], ["show", "run"], ["run", "--resume", "run", "--set", "train.lr=no"]]
        )
    (folder / f"data.{kind}").write_bytes(content)
    if kind == "md":
        (folder / "data.csv").write_bytes(samples["csv"])
    if kind == "py":
        return rng.choice([["show", "./data.py"], ["diff", "./data.py"]])
    return ["data", rng.choice(["check", "card"]), f"data.{kind}"]


def _setting_names() -> list[str]:
    return [dotted for dotted, _, _ in settings_of(load_recipe("bert_cls").recipe)] + ["adapter", "train", ""]


def _broken(content: bytes, rng: random.Random) -> bytes:
    """One to four mutations at random places."""
    ways: list[Callable[[bytes, int], bytes]] = [
        lambda data, at: data[:at] + rng.choice(SPLINTERS) + data[at:],
        lambda data, at: data[:at] + rng.choice(SPLINTERS) + data[at + rng.randrange(1, 40) :],
        lambda data, at: data[:at],
        lambda data, at: data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :] if data else data,
        lambda data, at: data[:at] + data[at + rng.randrange(1, 200) :],
        lambda data, at: data[:at] + data[max(0, at - 100) : at] * rng.randrange(1, 5) + data[at:],
        lambda data, at: data.replace(b'"', b"", 1),
        lambda data, at: data.replace(b"\n", b"\r\n"),
        lambda data, at: rng.randbytes(rng.randrange(200)),
    ]
    for _ in range(rng.randrange(1, 5)):
        content = rng.choice(ways)(content, rng.randrange(len(content)) if content else 0)
    return content


@contextlib.contextmanager
def _in_time(seconds: float) -> Iterator[None]:
    def ring(*_: object) -> None:
        raise HangError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 2 * seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
