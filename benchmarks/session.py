"""What a session costs and brings: saving and opening one beside reading its text again.

    python benchmarks/session.py --text book.txt --tokens 8192 --record

A text is read and a few greedy tokens are written; the conversation is saved; it goes on, uninterrupted. Then the session is
opened in a fresh cache and goes on, too: its tokens must be the same. Last, two other questions about the same text come through the
prompt cache, and a conversation has a second turn. Exits with 1 if the tokens differ, or opening takes more than 5 % of reading.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from hgca_cli import native
from hgca_cli.commands.setup import ModelChoice, plan_model, start_engine
from hgca_cli.config import SamplingSettings
from hgca_cli.engine.conversation import Conversation
from hgca_cli.engine.prompt_cache import PromptCache
from hgca_cli.engine.session import About, Session
from hgca_cli.events import Done
from hgca_cli.hardware.settings import PlanRequest
from hgca_cli.measure.machine import where_and_when

PLENTY = 1 << 50


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=8000)
    parser.add_argument("--ctx", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--select", default="scan")
    parser.add_argument("--new", type=int, default=24)
    parser.add_argument("--record", action="store_true", help="append to benchmarks/results/session.jsonl")
    options = parser.parse_args()
    choice = ModelChoice(options.model)
    request = PlanRequest(context=options.ctx, window=options.window, select=options.select, device="cpu")
    files, plan = plan_model(choice, request, lambda event: None)
    engine = start_engine(choice, files, plan)
    tokenizer = engine.loaded.tokenizer
    text = tokenizer.decode(tokenizer.encode(options.text.read_text(encoding="utf-8-sig"))[: options.tokens])
    sampling = SamplingSettings(temperature=0.0, max_tokens=options.new)

    def ask(conversation: Conversation, question: str) -> Done:
        *_, done = conversation.ask(question, sampling, threading.Event())
        assert isinstance(done, Done)
        return done

    line: dict[str, Any] = {
        "benchmark": "session",
        "model": options.model,
        "select": options.select,
        "kv_dtype": plan.kv_dtype,
    }
    with tempfile.TemporaryDirectory(prefix="hgca-session-") as folder:
        os.environ["HGCA_DATA_DIR"] = folder
        whole = Conversation(engine)
        whole.attach("the text", text)
        first = ask(whole, "What is it about?")
        line |= {"tokens": first.prompt_tokens, "prefill_s": first.prefill_seconds, "first_ttft_s": first.ttft_seconds}
        session = Session("notes")
        began = time.perf_counter()
        session.save(whole, About(options.model, None, {}), rows=True, limit=PLENTY)
        line["save_s"] = time.perf_counter() - began
        line["bytes"] = sum(shard.bytes for shard in session.record.saved.shards)
        session.close()
        second = ask(whole, "And who tells it?")
        line |= {"second_ttft_s": second.ttft_seconds, "second_ttft_share": second.ttft_seconds / first.ttft_seconds}
        whole.clear()

        session, again = Session("notes"), Conversation(engine)
        began = time.perf_counter()
        session.resume(engine, again)
        line["resume_s"] = time.perf_counter() - began
        line["resume_share"] = line["resume_s"] / first.prefill_seconds
        resumed = ask(again, "And who tells it?")
        line["same_tokens"] = resumed.text == second.text
        began = time.perf_counter()
        session.save(again, About(options.model, None, {}), rows=True, limit=PLENTY)
        line["save_turn_s"] = time.perf_counter() - began
        session.close()
        again.clear()

        other = Conversation(engine)
        other.reuse = PromptCache(engine)
        other.attach("the text", text)
        reused = ask(other, "Where does it happen?")
        line |= {"reused_tokens": reused.cached_tokens, "reused_ttft_s": reused.ttft_seconds}
    print(
        f"{line['tokens']:,} tokens read in {line['prefill_s']:.1f} s; saved in {line['save_s']:.2f} s ({line['bytes'] / 1e6:.0f} MB), "
        f"a turn in {line['save_turn_s']:.2f} s; opened in {line['resume_s']:.2f} s = {line['resume_share']:.1%} of reading, "
        f"same tokens: {line['same_tokens']}\n"
        f"first token after {line['first_ttft_s']:.1f} s, of the second turn {line['second_ttft_s']:.2f} s "
        f"= {line['second_ttft_share']:.1%}; of another question about the text {line['reused_ttft_s']:.2f} s "
        f"({line['reused_tokens']:,} tokens loaded)"
    )
    if options.record:
        with Path(__file__).with_name("results").joinpath("session.jsonl").open("a") as file:
            file.write(json.dumps(line | where_and_when(native.threads())) + "\n")
    return 0 if line["same_tokens"] and line["resume_share"] <= 0.05 and line["second_ttft_share"] <= 0.1 else 1


if __name__ == "__main__":
    sys.exit(main())
