"""The processes of a run watch each other: when one is lost, the rest say which and leave instead of waiting for it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import psutil

from finetune.launch import shared_folder

if TYPE_CHECKING:
    from accelerate import Accelerator

BEAT_S = 1.0
# A process that somebody stopped (SIGSTOP) may be let go on; not for long, because all others wait for it.
STOPPED_S = 15.0
# On another machine only the beat can be seen. Python may keep its lock through a long call, so this is generous.
SILENT_S = 180.0
# Time for a process that got an error to say so itself, before the others call it lost.
LAST_WORDS_S = 2.0


@contextmanager
def watched(accelerator: Accelerator, folder: Path, lost: Callable[[str], None]) -> Iterator[None]:
    """Beat for this process, and leave with exit status 1 when another of the run's processes is lost.

    A collective operation never returns when a partner is gone or stopped (gloo's own limit is half an hour), so the
    main thread can't be asked to leave: the watching thread calls `lost` and ends the process.

    Args:
        folder: a folder that all processes see; beats go into a folder of their own below it.
        lost: called once with the message before this process ends, to put it on record.
    """
    rank, world = accelerator.process_index, accelerator.num_processes
    if world == 1:
        yield
        return
    # A new one each time: what the processes of an earlier attempt said last is no news of these.
    beats = shared_folder(accelerator, lambda: Path(tempfile.mkdtemp(dir=folder, prefix=".processes-")))
    over = threading.Event()
    own = beats / f"{rank}.json"
    _beat(own, "running", 0)
    # Shared with the thread: what it ends because it was stopped would else look killed to this one.
    peers = {peer: _Peer(beats / f"{peer}.json") for peer in range(world) if peer != rank}
    thread = threading.Thread(target=_watch, args=(peers, beats, rank, world, over, lost), daemon=True, name="watch")
    thread.start()
    state = "failed"
    try:
        yield
        state = "done"
    except BaseException as error:
        state = f"failed: {type(error).__name__}: {error}".splitlines()[0]
        # A broken connection is what the others see of a process that is gone: the message is about that one.
        if isinstance(error, RuntimeError) and (culprit := _culprit(peers)) is not None:
            over.set()
            thread.join()
            _leave(culprit, rank, world, lost)
        raise
    finally:
        over.set()
        thread.join()
        _beat(own, state, -1)
    accelerator.wait_for_everyone()  # nobody reads it any more
    if rank == 0:
        shutil.rmtree(beats, ignore_errors=True)


def _watch(
    peers: Mapping[int, _Peer], beats: Path, rank: int, world: int, over: threading.Event, lost: Callable[[str], None]
) -> None:
    number = 0
    while not over.wait(BEAT_S):
        number += 1
        _beat(beats / f"{rank}.json", "running", number)
        for peer, seen in peers.items():
            what = seen.trouble()
            # This process may be on its way out for the same reason: then it is not the one to speak.
            if what is not None and not over.wait(LAST_WORDS_S):
                _leave((peer, what), rank, world, lost)


def _culprit(peers: Mapping[int, _Peer]) -> tuple[int, str] | None:
    """Another process that failed or is gone already, given the time to be."""
    until = time.monotonic() + LAST_WORDS_S
    while True:
        for peer, seen in peers.items():
            if (what := seen.trouble()) is not None:
                return peer, what
        if time.monotonic() > until:
            return None
        time.sleep(0.05)


def _leave(culprit: tuple[int, str], rank: int, world: int, lost: Callable[[str], None]) -> NoReturn:
    message = f"Process {culprit[0]} of {world} {culprit[1]}; process {rank} leaves too."
    with contextlib.suppress(Exception):
        lost(message)
    print(f"error: {message}\n  Go on from the last checkpoint with --resume.", file=sys.stderr, flush=True)
    os._exit(1)


class _Peer:
    """What can be known of another process of the run."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.last: tuple[Any, float] = (None, time.monotonic())
        self.stopped_since: float | None = None
        self.ended: str | None = None

    def trouble(self) -> str | None:
        """What is wrong with it, or None."""
        if self.ended is not None:
            return self.ended
        try:
            beat = json.loads(self.path.read_text("utf-8"))
        except (OSError, ValueError):
            beat = {}  # not there yet; the time below decides
        state, now = str(beat.get("state", "starting")), time.monotonic()
        if state == "done":
            return None
        if state.startswith("failed"):
            return state
        if beat.get("number") != self.last[0]:
            self.last = (beat.get("number"), now)
        if beat.get("host") == socket.gethostname():
            return self._here(int(beat["pid"]), float(beat["started"]), now)
        silent = now - self.last[1]
        return f"has given no sign for {silent:.0f} s" if silent > SILENT_S else None

    def _here(self, pid: int, started: float, now: float) -> str | None:
        try:
            process = psutil.Process(pid)
            status = process.status() if abs(process.create_time() - started) < 1 else psutil.STATUS_DEAD
        except psutil.Error:
            status = psutil.STATUS_DEAD
        if status in (psutil.STATUS_DEAD, psutil.STATUS_ZOMBIE):
            return f"(pid {pid}) is gone: killed, or it left before the end"
        if status != psutil.STATUS_STOPPED:
            self.stopped_since = None
            return None
        self.stopped_since = self.stopped_since or now
        if now - self.stopped_since < STOPPED_S:
            return None
        # Said before it is done: the thread that waits for this process sees the connection break at once.
        self.ended = f"(pid {pid}) was stopped for {STOPPED_S:.0f} s and was ended"
        # It would stay behind for ever: a stopped process takes no other signal.
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        return self.ended


def _beat(path: Path, state: str, number: int) -> None:
    own = psutil.Process()
    content = {
        "state": state,
        "number": number,
        "pid": own.pid,
        "started": own.create_time(),
        "host": socket.gethostname(),
    }
    # A full disk must not end a run that would notice by itself. Renamed and not synced: nobody reads it after a crash.
    with contextlib.suppress(OSError):
        temporary = path.with_suffix(".new")
        temporary.write_text(json.dumps(content), "utf-8")
        os.replace(temporary, path)
