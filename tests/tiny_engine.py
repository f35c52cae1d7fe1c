"""A tiny random model with a real byte-level BPE tokenizer and a chat template, all in memory."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from tokenizers import Tokenizer as Fast
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from hgca_cli.config import CacheSettings
from hgca_cli.engine.engine import Engine
from hgca_cli.hf.load import LoadedModel
from hgca_cli.hf.tokenizer import Tokenizer

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
# like templates that drop reasoning: earlier answers are not repeated as they were
FORGETFUL = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content if m.role != 'assistant' else 'dropped' }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
SPECIAL = ["<|end|>", "<|user|>", "<|assistant|>", "<|system|>"]
SAMPLE = ["the cat sat on the mat", "naïve café 東京 🙂🙃", "def f(x): return x + 1", "שלום עולם"] * 3


@cache
def byte_level() -> Fast:
    fast = Fast(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    fast.train_from_iterator(
        SAMPLE,
        trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, special_tokens=SPECIAL, show_progress=False),
    )
    return fast


def tiny_tokenizer(template: str | None = TEMPLATE) -> Tokenizer:
    hf = PreTrainedTokenizerFast(tokenizer_object=byte_level(), eos_token="<|end|>", chat_template=template)
    hf.add_special_tokens({"additional_special_tokens": SPECIAL[1:]})
    return Tokenizer(hf, frozenset([hf.convert_tokens_to_ids("<|end|>")]))


@cache
def _weights(sliding: int | None) -> dict[str, Any]:
    torch.manual_seed(11)
    return _model(sliding).state_dict()


def _model(sliding: int | None) -> Any:
    shape: dict[str, Any] = {
        "vocab_size": 320, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    }  # fmt: skip
    if sliding is not None:
        from transformers import MistralConfig, MistralForCausalLM

        return MistralForCausalLM(MistralConfig(**shape, sliding_window=sliding)).eval()
    return LlamaForCausalLM(LlamaConfig(**shape)).eval()


def tiny_model(sliding: int | None = None) -> Any:
    weights = _weights(sliding)
    model = _model(sliding)
    model.load_state_dict(weights)
    for parameter in model.parameters():  # random weights this small attend evenly: make attention matter
        if parameter.dim() == 2:
            parameter.data.mul_(4.0)
    return model.requires_grad_(False)


def tiny_loaded(tokenizer: Tokenizer | None = None, sliding: int | None = None) -> LoadedModel:
    model = tiny_model(sliding)
    return LoadedModel(
        name="tiny",
        files=None,  # type: ignore[arg-type]
        model=model,
        tokenizer=tokenizer or tiny_tokenizer(),
        device=torch.device("cpu"),
        dtype=torch.float32,
        trained_context=512,
        weights_bytes=0,
        fingerprint="",
    )


def tiny_engine(
    window: int = 16, context: int = 512, chunk: int = 8, template: str = TEMPLATE, sliding: int | None = None
) -> Engine:
    settings = CacheSettings(window=window, sinks=2, context=context)
    return Engine(tiny_loaded(tiny_tokenizer(template), sliding), settings, prefill_chunk=chunk)


class Endless:
    """A tokenizer that knows of no end; all else is as before."""

    end_ids: frozenset[int] = frozenset()

    def __init__(self, own: Any) -> None:
        self._own = own

    def __getattr__(self, name: str) -> Any:
        return getattr(self._own, name)
