"""The rows of the speed table: what is computed on both sides, and the ratios that are aimed at."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field

from finetune.errors import ConfigError

OURS, DEFAULT, BEST = "finetune", "default", "best"
STARTING, PLANS, DATA_PATH = "starting", "plans", "data"
SINGLE = {
    STARTING: "import finetune, --help, first update of `finetune run` and of `accelerate launch`",
    PLANS: "time and memory that `finetune plan` predicts, beside the real run, for every recipe with data of its own",
    DATA_PATH: "loading, 50 updates and peak memory on 1,000 to 1,000,000 rows",
}
"""Measurements without a peer, by the name that --rows takes."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        work: what is computed, in the table's words.
        recipe, settings: our side; data, seed and the number of updates are put to it.
        data: the card that rows are taken from; `digits` are written as images.
        peer: which of the peers in tests/peers it is compared with.
        peers_name: that peer in words.
        batch: rows of an update, on every side.
        updates: timed updates, after `warm_up` others; the slice has that many batches of rows. For a whole training:
            updates of an epoch.
        epochs: 0, or a whole training of so many epochs that is timed from its beginning to its end.
        goals: the ratio of times that is aimed at, by side: the peer as shipped, and with its best flags.
        useful: our side also measures useful work against `torch.mm`.
        memory_goal: largest share of the shipped peer's peak memory.
        most_pairs: no more pairs of it, however many of the others; 0 is no limit.
    """

    name: str
    work: str
    recipe: str
    data: str
    peer: str
    peers_name: str
    batch: int
    updates: int
    goals: Mapping[str, float]
    settings: tuple[str, ...] = ()
    warm_up: int = 4
    epochs: int = 0
    useful: bool = False
    memory_goal: float = 1.0
    most_pairs: int = 0
    peer_settings: Mapping[str, float | int | str] = field(default_factory=dict)

    @property
    def sides(self) -> list[str]:
        return [OURS, *self.goals]


# What the plain torchvision loop does: SGD of one rate, without clipping or weight decay.
_AS_TORCHVISION = (
    "train.precision=auto", "train.optimizer=sgd", "train.lr=1e-2", "train.lr_schedule=constant",
    "train.lr_warmup_updates=0", "train.clip_grad_norm=none", "train.weight_decay=0",
)  # fmt: skip
# Updates are as many as the slower side computes in about a minute on two cores.
ROWS = (
    Row(
        "bert_full", "bert_cls, full, movie_snippets (short rows)", "bert_cls", "movie_snippets",
        "trainer_full", "Trainer", 32, 60, {DEFAULT: 5.0, BEST: 1.5}, warm_up=6, useful=True,
    ),
    Row(
        "bert_long", "bert_cls, full, reuters_r8 (long rows, 256 tokens)", "bert_cls", "reuters_r8",
        "trainer_full", "Trainer", 32, 10, {DEFAULT: 5.0, BEST: 1.5}, warm_up=2, useful=True, memory_goal=0.6,
    ),
    Row(
        "bert_lora", "bert_lora, movie_snippets", "bert_lora", "movie_snippets",
        "trainer_lora", "Trainer and PEFT", 32, 80, {DEFAULT: 5.0, BEST: 1.5}, warm_up=6,
    ),
    Row(
        "bert_frozen", "frozen-encoder probe, 10 epochs, movie_snippets", "bert_cls", "movie_snippets",
        "trainer_frozen", "Trainer, frozen parameters", 32, 24, {DEFAULT: 30.0, BEST: 10.0},
        settings=("adapter=frozen", "train.lr=1e-3"), epochs=10, peer_settings={"lr": 1e-3},
    ),
    Row(
        "gpt2_lora", "gpt2_lora, Grimm's tales", "gpt2_lora", "grimm_tales",
        "run_clm_lora", "run_clm-style Trainer and PEFT", 4, 14, {DEFAULT: 3.0, BEST: 1.3}, warm_up=2, useful=True,
    ),
    Row(
        "resnet_full", "resnet_img, ResNet-18 at 224, full", "resnet_img", "digits",
        "torchvision_full", "plain torchvision loop", 16, 48, {DEFAULT: 2.3, BEST: 1.2},
        settings=_AS_TORCHVISION,
    ),
    Row(
        "resnet_frozen", "resnet_img, ResNet-18 at 224, frozen backbone, 10 epochs", "resnet_img", "digits",
        "torchvision_frozen", "plain torchvision loop", 16, 6, {DEFAULT: 20.0, BEST: 8.0},
        settings=("adapter=frozen", *_AS_TORCHVISION), epochs=10,
    ),
    Row(
        "few_shot", "few-shot, 8 rows a class: time to a trained classifier", "few_shot_cls", "movie_snippets",
        "setfit", "SetFit-style contrastive loop", 16, 40, {DEFAULT: 5.0},
        settings=("objective.each_text_once=true",), epochs=1,
    ),
    # A whole training of everything, once: quicker updates are worth nothing with another result.
    Row(
        "bert_end", "bert_cls, full, movie_snippets, all rows, 2 epochs, from end to end", "bert_cls", "movie_snippets",
        "trainer_full", "Trainer", 32, 239, {DEFAULT: 5.0, BEST: 1.5}, epochs=2, peer_settings={"lr": 1e-4},
        most_pairs=1,
    ),
)  # fmt: skip


def chosen(names: str | None) -> tuple[list[Row], list[str]]:
    """The rows that `--rows` names, comma-separated, and the single measurements; all of them without.

    Raises:
        ConfigError: there is none by a name (with the nearest).
    """
    known = {row.name: row for row in ROWS}
    if names is None:
        return list(ROWS), list(SINGLE)
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise ConfigError("--rows names none.", "`finetune bench speed --list` shows them.")
    for name in wanted:
        if name not in known and name not in SINGLE:
            near = difflib.get_close_matches(name, [*known, *SINGLE], n=1)
            hint = f"Did you mean {near[0]}? " if near else ""
            raise ConfigError(f"--rows {name} is no row.", f"{hint}`finetune bench speed --list` shows them.")
    return [row for row in ROWS if row.name in wanted], [name for name in SINGLE if name in wanted]


def listing() -> str:
    """The rows with their goals, a line each."""
    lines = []
    for row in ROWS:
        goals = ", ".join(f"{goal:g}x its {side} flags" if side == BEST else f"{goal:g}x as shipped"
                          for side, goal in row.goals.items())  # fmt: skip
        lines.append(f"{row.name:<15}{row.work}; beside {row.peers_name}: at least {goals}")
    lines += [f"{name:<15}{text}" for name, text in SINGLE.items()]
    return "\n".join(lines)
