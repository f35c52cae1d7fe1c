"""hgca as a model of the lm-evaluation-harness. Importing this registers it; only the extra `eval` installs the harness.

    lm_eval.simple_evaluate("hgca", model_args="model=smollm2-135m,select=exact,window=256", tasks=[...])

Model arguments are the options of `hgca chat`: model, ctx, window, sinks, select, budget, quality, threads, dtype, ...
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from lm_eval.api.model import LM
from lm_eval.api.registry import register_model

from hgca_cli.commands.flags import plan_request
from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import SamplingSettings
from hgca_cli.errors import ContextOverflowError, UsageError
from hgca_cli.events import Done
from hgca_cli.hf.registry import DEFAULT
from hgca_cli.measure.likelihood import LikelihoodScorer
from hgca_cli.ui.console import HumanSink
from hgca_cli.ui.style import style_of

AUTO = ("ctx", "window", "device", "dtype", "kv_dtype", "select", "budget", "quality", "threads", "prefill_chunk")
UNSET = ("sinks", "gpu_mem", "ram_limit", "store_dir")
RAW = ("sinks", "exact", "yarn", "dense_layers")  # numbers and switches the harness has read already
UNASKED = "cuda:0"  # the device the harness names if nobody did, also where there is none
TOKENS = 256  # most of an answer, where the task does not say


@register_model("hgca")
class HgcaModel(LM):
    """Requests are answered one after another: context read exactly, what follows under the policy.

    batch_size, max_batch_size  what the harness passes; of no effect

    Raises UsageError for an argument there is none of, others as of `plan_model` and `start_engine`.
    """

    def __init__(self, model: str = DEFAULT, batch_size: Any = 1, max_batch_size: Any = None, **given: Any) -> None:
        super().__init__()
        known: dict[str, Any] = dict.fromkeys(AUTO, "auto") | dict.fromkeys(UNSET)
        known |= {"quant": "auto", "exact": False, "yarn": False, "dense_layers": 0}
        if unknown := [name for name in given if name not in known]:
            raise UsageError(f"no model argument {unknown[0]!r}.", f"There are model, {', '.join(known)}.")
        if given.get("device") == UNASKED:
            given["device"] = None
        given = {name: value for name, value in given.items() if value is not None}
        words = {name: value if name in RAW else str(value) for name, value in given.items()}
        sink = HumanSink(style_of("never", plain=True), stats=False, stream=True, quiet=False)
        choice = ModelChoice(str(model))
        files, plan = plan_model(choice, plan_request(known | words), sink.show)
        self.engine = start_engine(choice, files, plan, notify=sink.show)
        self._scorer = LikelihoodScorer(self.engine)
        self._tokenizer = self.engine.loaded.tokenizer
        begins = self._tokenizer.hf.bos_token_id
        self._prefix = begins if begins is not None else min(self._tokenizer.end_ids, default=0)

    @property
    def tokenizer_name(self) -> str:
        """What the harness keeps rendered requests by."""
        return self.engine.loaded.name.replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """The model's own, if conversations are wanted."""
        return str(self._tokenizer.hf.chat_template or "") if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The text of a conversation."""
        return self._tokenizer.render(chat_history, add_generation_prompt=add_generation_prompt)

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(ln p, whether it is what greedy decoding gives) of each (context, continuation)."""
        answers = []
        for request in requests:
            context, continuation = self._pair(*request.args)
            if len(continuation) > self.engine.context:
                raise ContextOverflowError(
                    f"a continuation has {len(continuation):,} tokens, the context {self.engine.context:,}.",
                    "Raise ctx.",
                )
            found = self._scorer.score(context, continuation)
            answers.append((found.log_prob, found.greedy))
            self.cache_hook.add_partial("loglikelihood", request.args, answers[-1])
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """ln p of each text, whatever its length."""
        answers = []
        for request in requests:
            answers.append(self._scorer.rolling(self._prefix, self._tokenizer.encode(request.args[0], special=True)))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, answers[-1])
        return answers

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """What is written after each context, up to a stop text; greedily unless the task wants to draw."""
        answers = []
        for request in requests:
            text, options = request.args
            answers.append(self._write(text, options))
            self.cache_hook.add_partial("generate_until", request.args, answers[-1])
        return answers

    def _write(self, text: str, options: dict[str, Any]) -> str:
        until = options.get("until") or []
        draws = bool(options.get("do_sample", options.get("temperature")))
        tokens = int(options.get("max_gen_toks", options.get("max_new_tokens", TOKENS)))
        sampling = SamplingSettings(
            temperature=float(options.get("temperature", 1.0)) if draws else 0.0,
            top_p=float(options.get("top_p", 1.0)),
            top_k=int(options.get("top_k", 0)),
            seed=0,
            max_tokens=tokens,
            stop=tuple(one for one in ([until] if isinstance(until, str) else until) if one),
        )
        ids = self._tokenizer.encode_prompt(text)[
            -max(1, self.engine.context - tokens) :
        ]  # the end of what is too long
        sequence = self.engine.new_sequence()
        try:
            *_, done = self.engine.answer(sequence, ids, sampling, threading.Event(), before=ids)
        finally:
            sequence.close()
        assert isinstance(done, Done)
        return done.text

    def _pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Ids of both; blanks at the context's end belong to the continuation's first token."""
        if not context:
            return [self._prefix], self._tokenizer.encode(continuation, special=True)
        kept = context.rstrip()
        before = self._tokenizer.encode_prompt(kept) if kept else [self._prefix]
        if not kept:
            return before, self._tokenizer.encode(context + continuation, special=True)
        return before, self._tokenizer.encode_prompt(context + continuation)[len(before) :]
