"""What the records of a session say: medians, ratios with their spread, and the documents made of them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.bench.show import rows_markdown
from finetune.bench.speed.rows import BEST, DATA_PATH, DEFAULT, OURS, PLANS, ROWS, STARTING, Row
from finetune.bench.speed.starting import GOALS_S
from finetune.errors import ConfigError
from finetune.files import write_atomically, write_json

USEFUL_GOAL = 0.65
PLAN_GOAL = 0.2
WORDS = {DEFAULT: "as shipped", BEST: "best flags"}


@dataclass(frozen=True)
class Spread:
    """A median with the least and the most of what it was taken over."""

    median: float
    low: float
    high: float
    count: int

    def text(self, form: str) -> str:
        """`5.10 [4.90, 5.30]`."""
        return f"{self.median:{form}} [{self.low:{form}}, {self.high:{form}}]"

    def values(self) -> dict[str, float]:
        return {"median": self.median, "low": self.low, "high": self.high, "pairs": self.count}


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most of some values, at least one."""
    return Spread(statistics.median(values), min(values), max(values), len(values))


def ratios(ours: Mapping[int, Mapping[str, Any]], peers: Mapping[int, Mapping[str, Any]]) -> Spread | None:
    """How many times as long the peer takes for a token, pair by pair; None without a whole pair.

    For a row where a side counts no tokens (images, pairs of texts). Updates are timed at the same places of an epoch,
    not for the very same rows, whose lengths this evens out.
    """
    found = []
    for pair in sorted(set(ours) & set(peers)):
        unit = "tokens" if ours[pair]["tokens"] and peers[pair]["tokens"] else "examples"
        found.append(_seconds(peers[pair], unit) / _seconds(ours[pair], unit))
    return spread(found) if found else None


def _seconds(found: Mapping[str, Any], unit: str = "examples") -> float:
    return float(found["seconds"]) / float(found[unit])


def read_sides(folder: Path, row: Row) -> dict[str, dict[int, dict[str, Any]]]:
    """A row's records by side and pair."""
    sides: dict[str, dict[int, dict[str, Any]]] = {side: {} for side in row.sides}
    for path in sorted((folder / "records" / row.name).glob("*.json")):
        record = json.loads(path.read_text("utf-8"))
        sides[record["side"]][record["pair"]] = record
    return sides


def summary(folder: Path) -> dict[str, Any]:
    """All numbers of a session, JSON-able; rows without a record are left out.

    `rows` has for each row: rows a second and tokens a second by side, peak memory, ratios and their goals, and what
    the comparison was measured with.
    """
    rows: dict[str, Any] = {}
    for row in ROWS:
        records = read_sides(folder, row)
        if not records[OURS]:
            continue
        found = {side: {pair: record["found"] for pair, record in some.items()} for side, some in records.items()}
        sides = {}
        for side, some in found.items():
            if some:
                each = list(some.values())
                sides[side] = {
                    "rows_per_s": spread([1 / _seconds(one) for one in each]).values(),
                    "tokens_per_s": spread([one["tokens"] / one["seconds"] for one in each]).values(),
                    "peak_rss_mb": spread([one["peak_rss_mb"] for one in each]).values(),
                    "precision": each[0]["precision"],
                    **(
                        {"accuracy": spread([one["accuracy"] for one in each]).values()}
                        if "accuracy" in each[0]
                        else {}
                    ),
                }
        compared = {
            side: {"goal": goal, **ratio.values()}
            for side, goal in row.goals.items()
            if (ratio := ratios(found[OURS], found[side]))
        }
        every = [record for some in records.values() for record in some.values()]
        useful = sorted(
            (one["useful"] for one in found[OURS].values() if "useful" in one), key=lambda one: one["share"]
        )
        rows[row.name] = {
            "work": row.work, "peer": row.peers_name, "sides": sides, "ratios": compared,
            **({"memory_share": _memory_share(sides), "memory_goal": row.memory_goal} if DEFAULT in sides else {}),
            **({"useful": useful[(len(useful) - 1) // 2]} if useful else {}),  # the pair of the median share
            "most_cpu_used_by_others": max(record["cpu_used_by_others"] for record in every),
            "commit": every[0]["commit"], "measured_with": every[0]["key"],
        }  # fmt: skip
    loads = [json.loads(path.read_text("utf-8"))["busy_load"] for path in (folder / "records").glob("*/*.json")]
    singles = {STARTING: _starting(folder), PLANS: _plans(folder), DATA_PATH: _data_path(folder)}
    return {"rows": rows, **singles, "busy_load": max(loads, default=0.0)}


def _memory_share(sides: Mapping[str, Any]) -> float:
    return float(sides[OURS]["peak_rss_mb"]["median"] / sides[DEFAULT]["peak_rss_mb"]["median"])


def _singles(folder: Path, what: str) -> list[dict[str, Any]]:
    return [json.loads(path.read_text("utf-8")) for path in sorted((folder / "records" / what).glob("*.json"))]


def _starting(folder: Path) -> dict[str, Any]:
    records = [record["found"] for record in _singles(folder, STARTING)]
    names = [name for name in GOALS_S if records]
    return {name: {"goal": GOALS_S[name], **spread([one[name] for one in records]).values()} for name in names}


def _plans(folder: Path) -> dict[str, Any]:
    return {
        record["name"]: {
            **(one := record["found"]),
            "time_off": one["predicted_s"] / one["real_s"] - 1,
            "memory_off": one["predicted_mb"] / one["real_mb"] - 1,
        }
        for record in _singles(folder, PLANS)
    }


def _data_path(folder: Path) -> list[dict[str, Any]]:
    return sorted((record["found"] for record in _singles(folder, DATA_PATH)), key=lambda found: found["rows"])


def documents(folder: Path) -> str:
    """Write speed.json, speed.md and speed.png from the records, and return the Markdown."""
    found = summary(folder)
    text = document(found)
    write_json(folder / "speed.json", found)
    write_atomically(folder / "speed.md", text)
    if found["rows"]:
        from finetune.bench.speed.plot import picture

        picture(found["rows"], folder / "speed.png")
    return text


def marks(found: Mapping[str, Any]) -> tuple[str, str]:
    """What a README's table stands between: one of machines with bf16 and one of those without, who are far apart."""
    low = any(row["sides"][OURS]["precision"] != "fp32" for row in found["rows"].values())
    name = "speed" if low else "speed without bf16"
    return f"<!-- {name}: begin -->", f"<!-- {name}: end -->"


def write_readme(path: Path, found: Mapping[str, Any]) -> None:
    """Put the short table between its marks of a README; nothing else of it changes.

    Raises:
        ConfigError: it has no such marks, nothing was measured, or the machine was busy.
    """
    if not found["rows"] or found["busy_load"]:
        raise ConfigError(
            "The README takes no speeds of a busy machine, and none that there are not.", "Measure again."
        )
    text, (begin, end) = path.read_text("utf-8") if path.is_file() else "", marks(found)
    if begin not in text or end not in text:
        raise ConfigError(f"{path} has no marks for this table of speeds.", f"Write {begin} and {end} where it goes.")
    head = [
        "work",
        "beside",
        "rows/s",
        "times the peer as shipped",
        "with its best flags",
        "peak memory, of the peer's",
    ]
    lines = [head]
    for row in found["rows"].values():
        times = [
            f"{_text(row['ratios'][side], '.2f')} (goal {row['ratios'][side]['goal']:g})"
            if side in row["ratios"]
            else "–"
            for side in (DEFAULT, BEST)
        ]
        share = f"{row['memory_share']:.2f}" if "memory_share" in row else "–"
        rate = row["sides"][OURS]["rows_per_s"]["median"]
        lines.append([row["work"], row["peer"], f"{rate:.0f}" if rate >= 10 else f"{rate:.1f}", *times, share])
    parts = [rows_markdown(lines), "Medians over pairs [least, most].", _behind(found["rows"])]
    parts += [_useful(found["rows"])] if any("useful" in row for row in found["rows"].values()) else []
    block = "\n\n".join([*parts, *_single_tables(found), _machine(next(iter(found["rows"].values())))])
    before, after = text.partition(begin)[0], text.partition(end)[2]
    write_atomically(path, f"{before}{begin}\n{block}\n{end}{after}")


def document(found: Mapping[str, Any]) -> str:
    """The Markdown of a session's numbers: the table, what is behind, and what it was measured on."""
    blocks = []
    if busy := found["busy_load"]:
        blocks.append(f"**Not a quiet machine:** the load average was up to {busy:.2f} at a start (`--busy`).")
    if found["rows"]:
        blocks += [_table(found["rows"]), _behind(found["rows"]), _machine(next(iter(found["rows"].values())))]
        if any("useful" in row for row in found["rows"].values()):
            blocks.append(_useful(found["rows"]))
    return "\n\n".join(block for block in [*blocks, *_single_tables(found)] if block) + "\n"


def _single_tables(found: Mapping[str, Any]) -> list[str]:
    """A table of each measurement that has no peer, where there is one."""
    blocks = []
    if found[STARTING]:
        head = ["until", "seconds [least, most]", "goal"]
        lines = [[name, _text(one, ".2f"), f"{one['goal']:g}"] for name, one in found[STARTING].items()]
        blocks.append(rows_markdown([head, *lines]))
    if found[PLANS]:
        head = ["recipe", "updates", "planned s", "real s", "off", "planned MiB", "real MiB", "off"]
        lines = [
            [name, str(one["updates"]), f"{one['predicted_s']:.0f}", f"{one['real_s']:.1f}", f"{one['time_off']:+.0%}",
             f"{one['predicted_mb']:.0f}", f"{one['real_mb']:.0f}", f"{one['memory_off']:+.0%}"]
            for name, one in found[PLANS].items()
        ]  # fmt: skip
        blocks.append(f"`finetune plan` is meant to be within {PLAN_GOAL:.0%}:\n\n" + rows_markdown([head, *lines]))
    if found[DATA_PATH]:
        blocks.append(_data_path_table(found[DATA_PATH]))
    return blocks


def _data_path_table(sizes: Sequence[Mapping[str, Any]]) -> str:
    head = ["training rows", "loading the first time, s", "again, s", f"{sizes[0]['updates']} updates, s",
            "peak memory the first time, MiB", "again, MiB"]  # fmt: skip
    lines = [
        [f"{one['rows']:,}", f"{one['first_load_s']:.1f}", f"{one['again_load_s']:.1f}", f"{one['again_train_s']:.1f}",
         f"{one['first_peak_mb']:.0f}", f"{one['again_peak_mb']:.0f}"]
        for one in sizes
    ]  # fmt: skip
    return rows_markdown([head, *lines])


def _text(values: Mapping[str, float], form: str) -> str:
    return Spread(values["median"], values["low"], values["high"], 0).text(form)


def _table(rows: Mapping[str, Any]) -> str:
    head = ["work", "beside", "finetune, rows/s", "as shipped: rows/s", "times", "goal", "best flags: rows/s", "times",
            "goal", "memory: MiB", "share of shipped"]  # fmt: skip
    lines = [head]
    for row in rows.values():
        sides = row["sides"]
        line = [row["work"], row["peer"], f"{sides[OURS]['rows_per_s']['median']:.1f}"]
        for side in (DEFAULT, BEST):
            ratio = row["ratios"].get(side)
            line += (
                [f"{sides[side]['rows_per_s']['median']:.1f}", _text(ratio, ".2f"), f"{ratio['goal']:g}"]
                if ratio
                else ["–"] * 3
            )
        share = f"{row['memory_share']:.2f}" if "memory_share" in row else "–"
        lines.append([*line, f"{sides[OURS]['peak_rss_mb']['median']:.0f}", share])
    note = (
        "Rows a second are medians. `times` is how many times as long the peer takes for a token (for a row where rows "
        "have no length): the median over pairs [least, most], each pair measured side after side."
    )
    return f"{rows_markdown(lines)}\n\n{note}"


def _behind(rows: Mapping[str, Any]) -> str:
    """Where the goals are not met, and where a peer is ahead; nothing is left out of it."""
    lines = []
    for row in rows.values():
        for side, ratio in row["ratios"].items():
            if ratio["median"] < 1:
                lines.append(f"- {row['work']}: **the peer {WORDS[side]} is faster**, {ratio['median']:.2f} times.")
            elif ratio["median"] < ratio["goal"]:
                lines.append(
                    f"- {row['work']}: {ratio['median']:.2f} times the peer {WORDS[side]}, of {ratio['goal']:g}."
                )
        if row.get("memory_share", 0.0) > row.get("memory_goal", 1.0):
            lines.append(f"- {row['work']}: peak memory is {row['memory_share']:.2f} of the peer's, above "
                         f"{row['memory_goal']:g}.")  # fmt: skip
        if "useful" in row and row["useful"]["share"] < USEFUL_GOAL:
            lines.append(f"- {row['work']}: useful work is {row['useful']['share']:.0%} of `torch.mm`'s rate, below "
                         f"{USEFUL_GOAL:.0%}.")  # fmt: skip
        accuracies = {side: some["accuracy"]["median"] for side, some in row["sides"].items() if "accuracy" in some}
        if accuracies:
            shown = ", ".join(f"{side} {value:.3f}" for side, value in accuracies.items())
            lines.append(f"- {row['work']}: test accuracy {shown}.")
    return "Goals that are not met, and accuracies:\n\n" + "\n".join(lines) if lines else "All goals are met."


def _useful(rows: Mapping[str, Any]) -> str:
    head = ["work", "useful GFLOP/s", "torch.mm on its shapes", "share", "goal"]
    lines = [
        [row["work"], *(f"{row['useful'][key]:.0f}" for key in ("useful_gflops", "mm_gflops")),
         f"{row['useful']['share']:.0%}", f"{USEFUL_GOAL:.0%}"]
        for row in rows.values() if "useful" in row
    ]  # fmt: skip
    return rows_markdown([head, *lines])


def _machine(row: Mapping[str, Any]) -> str:
    key, pairs = row["measured_with"], row["sides"][OURS]["rows_per_s"]["pairs"]
    packages = ", ".join(f"{name} {version}" for name, version in key["versions"].items())
    instructions = key.get("instructions", "instructions not noted")  # by records of an earlier version
    return (
        f"{key['cpu']} ({instructions}), {key['cores']} cores, {key['threads']} threads a side, "
        f"{key['memory_gb']} GiB; {pairs} pairs; "
        f"commit {row['commit']}; {packages}. Other processes used at most {row['most_cpu_used_by_others']:.0%} of the "
        "processor before a side began (first row)."
    )
