"""What fingers type that are used to other tools, and what stands for it here."""

from __future__ import annotations

import re

from hgca_cli.commands.aliases import ALIASES, SAID
from hgca_cli.errors import UsageError

PLANNED = "The plan decides what the GPU gets; --gpu-mem SIZE caps it, --plan shows it."
TALK = "Without a prompt hgca chat is a conversation; with one it answers and exits."
FREE = "--json-schema holds answers to a schema; --json prints JSON lines."
INPUT = "The input is a word of its own: hgca batch prompts.jsonl -o answers.jsonl"
ROWS = "--kv-dtype chooses the numbers of keys and values, int8 the smallest."
ATTENTION = "Leave it out: there is one attention here, and --window, --quality, --exact say what it reads."
MAPPED = "Leave it out: weights are mapped as far as that helps; --plan shows what is where."
GUESSED = "No second model guesses here: --prompt-lookup N guesses tokens from the text so far."
ONE = "One process uses one device, which --device names."
SERVER = "There is no server; hgca chat -p TEXT --json is for programs."
DRAWN = "What is drawn from is set with --temp, --top-k, --top-p, --min-p and the penalties here."
FULL = "It is --overflow here: what happens when a conversation fills the context."
THREADS = "It is --threads here, for prompts and answers alike."
FLAGS = {
    "-ngl": PLANNED,
    "--n-gpu-layers": PLANNED,
    "--gpu-layers": PLANNED,
    "--num-gpu": PLANNED,
    "--gpu-memory-utilization": PLANNED,
    "-ncmoe": PLANNED,
    "--n-cpu-moe": PLANNED,
    "--cpu-moe": PLANNED,
    "-ot": PLANNED,
    "--override-tensor": PLANNED,
    "--cpu-offload-gb": PLANNED,
    "-nkvo": PLANNED,
    "--no-kv-offload": PLANNED,
    "-ctk": ROWS,
    "--cache-type-k": ROWS,
    "-ctv": ROWS,
    "--cache-type-v": ROWS,
    "-fa": ATTENTION,
    "--flash-attn": ATTENTION,
    "--attn-implementation": ATTENTION,
    "--attention-backend": ATTENTION,
    "--mlock": MAPPED,
    "--no-mmap": MAPPED,
    "--mmap": MAPPED,
    "-ts": ONE,
    "--tensor-split": ONE,
    "-sm": ONE,
    "--split-mode": ONE,
    "-mg": ONE,
    "--main-gpu": ONE,
    "--device-map": ONE,
    "-tp": ONE,
    "--tensor-parallel-size": ONE,
    "-md": GUESSED,
    "--model-draft": GUESSED,
    "--assistant-model": GUESSED,
    "--draft-model": GUESSED,
    "--num-draft-tokens": GUESSED,
    "--spec-type": GUESSED,
    "--speculative-config": GUESSED,
    "--num-speculative-tokens": GUESSED,
    "-b": "It is --prefill-chunk here: prompt tokens read at once.",
    "--batch-size": "It is --prefill-chunk here, prompt tokens read at once; hgca batch --concurrency says how many rows.",
    "-ub": "It is --prefill-chunk here: prompt tokens read at once.",
    "--ubatch-size": "It is --prefill-chunk here: prompt tokens read at once.",
    "-r": "It is --stop here.",
    "--rope-scaling": "--yarn stretches the context to --ctx.",
    "--jinja": "Leave it out: the model's own chat template is taken; --chat-template FILE gives another.",
    "--grammar": FREE,
    "--grammar-file": FREE,
    "--enforce-eager": "Leave it out.",
    "--cpu": "It is --device cpu here.",
    "--lora": "There are no adapters here: name a model they were merged into.",
    "--image": "Models read text only here.",
    "--mmproj": "Models read text only here.",
    "--do-sample": "Leave it out: --temp above 0 draws, --temp 0 does not.",
    "--format": FREE,
    "--reasoning": "It is --think or --no-think here.",
    "--numa": "Leave it out: threads keep to their processors; --threads N says how many.",
    "-tb": THREADS,
    "--threads-batch": THREADS,
    "--host": SERVER,
    "--port": SERVER,
    "--api-key": SERVER,
    "--mirostat": DRAWN,
    "--mirostat-lr": DRAWN,
    "--mirostat-ent": DRAWN,
    "--typical": DRAWN,
    "--typical-p": DRAWN,
    "--dynatemp-range": DRAWN,
    "--xtc-probability": DRAWN,
    "--dry-multiplier": DRAWN,
    "--samplers": DRAWN,
    "--logit-bias": DRAWN,
    "--ignore-eos": "Leave it out: an answer ends where the model ends it, after -n N tokens at most.",
    "--context-shift": FULL,
    "--no-context-shift": FULL,
    "--swap-space": "Leave it out: what is older than the window is in the processor's memory; --ram-limit caps that.",
}
CHAT = {
    "-cnv": TALK,
    "--conversation": TALK,
    "-i": TALK,
    "--interactive": TALK,
    "-st": TALK,
    "--single-turn": TALK,
    "-mli": 'Esc Enter begins a new line; so do lines between """.',
    "--multiline-input": 'Esc Enter begins a new line; so do lines between """.',
    "--no-show-timings": "It is --no-stats here.",
    "-no-cnv": "It is --raw here: the text goes on as it stands.",
    "--no-conversation": "It is --raw here: the text goes on as it stands.",
    "--no-display-prompt": "Leave it out: standard output is the answer only.",
    "--prompt-cache": "--session NAME keeps what was read; the same words open it again.",
    "--stream": "Leave it out: answers come as they are written; --no-stream gives them whole.",
    "--keepalive": "Leave it out: the model is gone when the command ends.",
    "--nowordwrap": "It is --plain here.",
    "--log-file": "Redirect standard error, with --verbose.",
}
JOB = {
    "-i": INPUT,
    "--input": INPUT,
    "--input-file": INPUT,
    "--output-file": "It is -o here.",
    "--resume": "The same command goes on with the rows that are missing.",
    "-p": "Write prompts into a file, one a line, and give --text; hgca chat -p TEXT answers one.",
    "--prompt": "Write prompts into a file, one a line, and give --text; hgca chat -p TEXT answers one.",
    "-f": INPUT,
    "--file": INPUT,
}
VERSION = "It is hgca --version."
SESSION = "hgca sessions rm NAME removes one."
GONE = "hgca models rm NAME removes one."
SHOWN = "hgca config show lists every setting."
OUT = "hgca config unset KEY takes it out of your file."
INSIDE = {
    "sessions": {"list": "hgca sessions ls lists them.", "delete": SESSION, "remove": SESSION},
    "models": {"list": "hgca models ls lists them.", "delete": GONE, "remove": GONE},
    "config": {"list": SHOWN, "ls": SHOWN, "delete": OUT, "remove": OUT, "rm": OUT},
}  # by group of commands, for a word after it
EVALS = {
    "fidelity": "Texts are named by --text FILE.",
    "recall": "Prompts are named by --cases FILE.",
    "drift": "Texts are named by --text FILE.",
}  # for a word after it
LIMITS = {"fidelity": "It is --positions here.", "recall": "It is --count here.", "drift": "It is --tokens here."}
FIRST = "The command comes first: hgca chat -m MODEL -p 'your question'."
OFTEN = ("-m", "--model", "-p", "--prompt", "-f", "--file", "-c", "--ctx", "-n", "--max-tokens", "--temp")
COMMANDS = {
    "run": "hgca chat -m MODEL talks to a model.",
    "generate": "hgca chat -p TEXT answers once.",
    "list": "hgca models ls lists models.",
    "ls": "hgca models ls lists models.",
    "show": "hgca models ls lists models; hgca chat -m MODEL --plan shows what one needs.",
    "serve": SERVER,
    "env": "hgca doctor shows the environment.",
    "rm": "hgca models rm removes models, hgca sessions rm sessions.",
    "ps": "Nothing stays loaded: a model is gone when its command ends.",
    "stop": "Nothing stays loaded: a model is gone when its command ends.",
    "complete": "hgca chat --raw -p TEXT goes on with a text.",
    "version": VERSION,
    "help": "hgca --help lists commands, hgca chat --help the options of one.",
}


def refuse_foreign(words: list[str]) -> None:
    """Raises UsageError for an option of a chat, a job or an evaluation that only another tool has; an abbreviation of ours may look
    like it.
    """
    limits = [word for word in words if word.partition("=")[0] == "--limit"]
    if words[:1] == ["eval"] and words[1:2] and words[1] in LIMITS and limits:
        raise UsageError("no such option: --limit.", LIMITS[words[1]])
    command = next((word for word in words if word in ("chat", "batch")), None)
    if command is None:
        return
    flags = FLAGS | (CHAT if command == "chat" else JOB)
    for before, word in zip(["", *words], words, strict=False):
        name = word.partition("=")[0]
        if name in flags and before not in SAID:
            raise UsageError(f"no such option: {name}.", flags[name])


def hint_for(message: str, hint: str) -> str:
    """A better hint, if what was told is that there is no command, word or option of a name that other tools have."""
    evaluation = re.match(r"See hgca eval (\w+) --help\.", hint)
    if evaluation and message.startswith("Got unexpected extra argument"):
        return EVALS.get(evaluation[1], hint)
    found = re.match(r"No such command '(.+?)'(?=[.?!]|$)", message, re.DOTALL)
    if found and " " in found[1]:
        return "hgca chat 'your question' asks a model."
    group = re.match(r"See hgca (\w+) --help\.", hint)
    if found and group:
        return INSIDE.get(group[1], {}).get(found[1], hint)
    if found:
        return COMMANDS.get(found[1], hint)
    flag = re.match(r"No such option: (-\S+?)\.? ", f"{message} ")
    if flag and hint == "See hgca --help.":  # before any command
        name = ALIASES.get(flag[1], flag[1])
        return VERSION if name == "-V" else FIRST if name in OFTEN else hint
    return hint
