"""The cases of the matrix: every recipe with every adapter, and the few real rows that each is run on."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

DATA = Path(os.environ.get("FINETUNE_DATA", ""))
UPDATES = 4
COMMON = (
    "train.precision=fp32",
    "train.threads=1",
    f"train.max_updates={UPDATES}",
    "train.epochs=40",
    "train.batch_size=8",
    "train.micro_batch_size=2",  # 4 shards: one process adds them up, two have two each
    "train.eval_every_updates=2",
    "train.keep_checkpoints=9",
    # Its first updates are full in every case. A short one is cut otherwise among two processes, and dropout with it.
    "train.seed=10",
)
ADAPTERS = {
    "full": ("adapter=full",),
    "lora": ("adapter=lora", "adapter.rank=4", "adapter.dropout=0.1"),
    "adalora": ("adapter=adalora", "adapter.target_r=2", "adapter.init_r=4", "adapter.dropout=0.1"),
}
# Where a recipe of ten lines is a base recipe with an adapter, that one is run.
DERIVED = {
    ("bert_cls", "lora"): "bert_lora",
    ("bert_cls", "adalora"): "bert_adalora",
    ("gpt2_clm", "lora"): "gpt2_lora",
    ("gpt2_clm", "adalora"): "gpt2_adalora",
    ("resnet_img", "lora"): "resnet_lora",
}
BASES = (
    "bert_cls", "bert_pair", "bert_ner", "bert_mlm", "few_shot_cls", "gpt2_scratch", "gpt2_clm", "gpt2_sft",
    "resnet_img", "resnet_pretrain",
)  # fmt: skip
# Their rows come from FINETUNE_DATA.
NEED_DATA = ("bert_pair", "bert_ner")
TEMPLATE = (
    "{% for message in messages %}{{ message['role'][0] }}: {{ message['content'] }}<|endoftext|>{% endfor %}"
    "{% if add_generation_prompt %}a: {% endif %}"
)


@dataclass(frozen=True)
class Case:
    """A recipe and an adapter.

    Attributes:
        base: the recipe, or the one that a recipe of ten lines derives from.
        letters: instead of SmolLM2, the small GPT-2 of letters that gpt2_scratch trained a moment before.
    """

    base: str
    adapter: str
    letters: bool

    @property
    def name(self) -> str:
        return f"{self.base}-{self.adapter}"

    @property
    def recipe(self) -> str:
        return DERIVED.get((self.base, self.adapter), self.base)

    @property
    def copied(self) -> bool:
        """Whether it is also run from a copy of the recipe: at least one case of each in `finetune list`."""
        return self.adapter == "lora" or (self.base, "lora") in DERIVED

    def settings(self, data: Path) -> list[str]:
        derived = self.recipe != self.base
        return [*COMMON, *_settings(self.base, data, self.letters), *(() if derived else ADAPTERS[self.adapter])]


def _settings(base: str, data: Path, letters: bool) -> list[str]:
    """What makes a recipe small, and where its rows are."""
    plain = [f"data.source={data / 'tales'}", "data.block_tokens=32", "data.test_share=0.2", "data.valid_share=0.1"]
    small_gpt2 = [f"model.name={data / 'letters'}", "model.dropout=0.1"] if letters else []
    chats = [
        f"data.source={data / 'chats.jsonl'}",
        # SmolLM2's template begins each chat with some thirty tokens of its own.
        f"data.max_tokens={64 if letters else 96}",
        "data.max_lost_share=0.9",
    ]
    template = [f"data.chat_template={data / 'letters.jinja'}"] if letters else []
    return {
        "bert_cls": [f"data.source={data / 'reviews.csv'}", "data.max_tokens=32", "data.max_train_rows=40"],
        "few_shot_cls": [f"data.source={data / 'reviews.csv'}", "data.max_tokens=32"],
        "bert_pair": [f"data.source={data / 'pairs'}", "data.max_tokens=48", "objective.kind=regression"],
        "bert_ner": [f"data.source={data / 'tagged'}", "data.max_tokens=32", "data.overlap_tokens=8"],
        "bert_mlm": plain,
        "gpt2_scratch": [*plain, "model.dropout=0.1"],
        "gpt2_clm": [*plain, *small_gpt2],
        "gpt2_sft": [*chats, *template, *small_gpt2],
        "resnet_img": ["data.source=digits", "data.rows_per_class=4"],
        "resnet_pretrain": ["train.eval_every_updates=4", "train.save_every_updates=2"],
    }[base]


def all_cases(letters: bool) -> list[Case]:
    return [Case(base, adapter, letters) for base in BASES for adapter in ADAPTERS]


def prepare(data: Path, letters: bool) -> None:
    """Real rows, few of them, and the small GPT-2."""
    from finetune.data.loader import load_data
    from finetune.language_settings import ConversationData, PlainTextData
    from tests.trainers import write_reviews

    data.mkdir(parents=True)
    write_reviews(data / "reviews.csv", rows=80)
    (data / "tales").mkdir()
    tales = load_data(PlainTextData(source="grimm_tales"), {"text": None})
    for row in tales.splits["train"].select(range(20)):
        (data / "tales" / f"{row['id'].replace('/', '-')}.txt").write_text(row["text"][:400], encoding="utf-8")
    chats = load_data(ConversationData(source="movie_dialogues"), {"prompt": None, "response": None}).splits["train"]
    lines = [json.dumps({name: row[name] for name in ("prompt", "response")}) for row in chats.select(range(60))]
    (data / "chats.jsonl").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    (data / "letters.jinja").write_text(TEMPLATE)
    if (DATA / "glue").is_dir():
        (data / "pairs").mkdir()
        for name, rows in (("train", 60), ("dev", 24), ("test", 16)):
            lines = (DATA / "glue" / "STS-B" / f"{name}.tsv").read_text("utf-8").splitlines(keepends=True)
            (data / "pairs" / f"{name}.tsv").write_text("".join(lines[: rows + 1]), "utf-8")
        (data / "tagged").mkdir()
        names = {"wnut17train.conll": "train", "emerging.dev.conll": "dev", "emerging.test.annotated": "test"}
        for source, name in names.items():
            lines = (DATA / "wnut17" / source).read_text("utf-8").splitlines(keepends=True)
            (data / "tagged" / f"{name}.conll").write_text("".join(lines[:700]), "utf-8")
    if letters:
        from tests.matrix.roles import make_trainer

        settings = [*Case("gpt2_scratch", "full", True).settings(data), "data.block_tokens=64"]
        trainer = make_trainer("gpt2_scratch", settings, data / "letters-run")
        trainer.fit()
        trainer.task.save(trainer.model, data / "letters")
