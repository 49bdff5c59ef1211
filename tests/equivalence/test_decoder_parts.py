"""A decoder's norms and rotary positions in fewer passes, against transformers' own: SmolLM2's own weights."""

from __future__ import annotations

import copy
import importlib
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BertConfig, BertModel
from transformers.models.llama import modeling_llama

from finetune.attention import fast_attention
from finetune.config import TrainSettings
from finetune.data.sources import resolve_model
from finetune.decoder_parts import FAMILIES, _Norm, _Rotated, fast_decoder_parts, modeling
from finetune.hardware import choose_precision
from finetune.kernels import Kernels
from finetune.low_rank import fast_lora
from finetune.recipe import load_recipe

pytestmark = [
    pytest.mark.equivalence,
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),  # PEFT asks for it
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> Any:
    source = load_recipe("gpt2_clm").recipe.model
    path = resolve_model(source.name, source.revision).path
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).train()


def adapted(model: Any) -> Any:
    torch.manual_seed(0)
    targets = ["q_proj", "k_proj", "v_proj", "up_proj"]
    return get_peft_model(copy.deepcopy(model), LoraConfig(r=4, target_modules=targets, init_lora_weights=False))


def passed(model: Any, wanted: bool) -> dict[str, torch.Tensor]:
    """Logits of two texts of 70 tokens, and the gradients of their loss."""
    model.zero_grad()
    ids_BT = torch.randint(0, 40_000, (2, 70), generator=torch.Generator().manual_seed(0))
    with fast_decoder_parts(model, CPU, wanted):
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten()).backward()
    gradients = {name: part.grad.clone() for name, part in model.named_parameters() if part.grad is not None}
    return {"logits": logits_BTV.detach(), **gradients}


def test_they_are_llamas_own_functions_with_the_gradients_of_finite_differences() -> None:
    torch.manual_seed(0)
    norm = modeling_llama.LlamaRMSNorm(10, eps=1e-5).double()
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(2, 3, 10, dtype=torch.float64, requires_grad=True)

    def own_norm(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return _Norm.apply(x, weight, 1e-5, torch.float64)

    # Theirs is in fp32 inside.
    torch.testing.assert_close(own_norm(x, norm.weight), norm(x).double(), atol=1e-6, rtol=1e-6)
    assert torch.autograd.gradcheck(own_norm, (x, norm.weight))
    angles = torch.rand(2, 1, 5, 4, dtype=torch.float64).repeat(1, 1, 1, 2)
    turn = torch.randn(2, 3, 5, 8, dtype=torch.float64, requires_grad=True)
    expected, _ = modeling_llama.apply_rotary_pos_emb(turn, turn, angles[:, 0].cos(), angles[:, 0].sin())
    torch.testing.assert_close(_Rotated.apply(turn, angles.cos(), angles.sin()), expected)
    assert torch.autograd.gradcheck(lambda x: _Rotated.apply(x, angles.cos(), angles.sin()), (turn,))


@pytest.mark.parametrize("adapt", [lambda model: model, adapted], ids=["full", "lora"])
def test_in_bf16_they_are_as_near_to_fp32_as_transformers_own(model: Any, adapt: Callable[[Any], Any]) -> None:
    model = adapt(model)
    exact = passed(model, False)
    with torch.autocast("cpu", torch.bfloat16), fast_attention(CPU, True), fast_lora(CPU, True):
        plain, found = (passed(model, wanted) for wanted in (False, True))
    assert found.keys() == exact.keys()
    off = [
        {name: float((one[name].float() - some).norm() / some.norm()) for name, some in exact.items()}
        for one in (plain, found)
    ]
    assert not torch.equal(plain["logits"], found["logits"])  # it was used
    assert sum(off[1].values()) < 1.1 * sum(off[0].values())
    assert max(off[1].values()) < 1.5 * max(off[0].values())


@pytest.mark.parametrize("adapt", [lambda model: model, adapted], ids=["full", "lora"])
def test_in_fp32_they_are_transformers_own_but_for_rounding(model: Any, adapt: Callable[[Any], Any]) -> None:
    model = adapt(model)
    plain, found = (passed(model, wanted) for wanted in (False, True))
    assert found.keys() == plain.keys()
    assert not torch.equal(plain["logits"], found["logits"])  # it was used
    off = {name: float((found[name] - some).norm() / some.norm()) for name, some in plain.items()}
    assert max(off.values()) < 5e-5  # a gradient that came through 30 layers
    with torch.no_grad():  # where nothing is trained they are transformers' to the bit
        ids_BT = torch.arange(20)[None]
        logits_BTV = model(input_ids=ids_BT).logits
        with fast_decoder_parts(model, CPU, True):
            assert torch.equal(model(input_ids=ids_BT).logits, logits_BTV)


def test_so_they_are_where_layers_run_again(model: Any) -> None:
    # In the precision of a run here: without instructions for it bf16 would take 20 s a pass.
    with torch.autocast("cpu", torch.bfloat16, enabled=choose_precision("auto") == "bf16"):
        once = passed(model, True)
        model = copy.deepcopy(model)
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        again = passed(model, True)
    assert once.keys() == again.keys()
    assert all(torch.equal(again[name], some) for name, some in once.items())


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_llamas_own_code(name: str) -> None:
    prefix, known = FAMILIES[name], importlib.import_module(f"transformers.models.{name}.modeling_{name}")
    norms = [getattr(known, f"{prefix}RMSNorm").forward, modeling_llama.LlamaRMSNorm.forward]
    turns = [known.apply_rotary_pos_emb, modeling_llama.apply_rotary_pos_emb]
    halves = [known.rotate_half, modeling_llama.rotate_half]
    for own, llamas in (norms, turns, halves):
        assert inspect.getsource(own).split('"""')[-1] == inspect.getsource(llamas).split('"""')[-1]
    assert "= apply_rotary_pos_emb(" in inspect.getsource(known)  # looked up when it is called, so it can be replaced


def test_a_run_uses_them_and_puts_back_what_was_there(model: Any) -> None:
    before = modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb
    for wanted in (True, False):
        kernels = Kernels(CPU, TrainSettings(fast_decoder_parts=wanted))
        for low_precision in (True, False):
            assert ("train.fast_decoder_parts" in kernels.in_use(model, low_precision, causal=True)) == wanted
        with kernels.used(model):
            assert (modeling_llama.LlamaRMSNorm.forward is before[0]) == (not wanted)
            assert (modeling_llama.apply_rotary_pos_emb is before[1]) == (not wanted)
        assert (modeling_llama.LlamaRMSNorm.forward, modeling_llama.apply_rotary_pos_emb) == before
    small = BertConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    assert modeling(BertModel(small)) is None
