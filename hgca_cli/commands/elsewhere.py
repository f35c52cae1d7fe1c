"""What fingers type that are used to other tools, and what stands for it here."""

from __future__ import annotations

import re

from hgca_cli.errors import UsageError

PLANNED = "The plan decides what the GPU gets; --gpu-mem SIZE caps it, --plan shows it."
TALK = "Without a prompt hgca chat is a conversation; with one it answers and exits."
FREE = "--json-schema holds answers to a schema; --json prints JSON lines."
INPUT = "The input is a word of its own: hgca batch prompts.jsonl -o answers.jsonl"
FLAGS = {
    "-ngl": PLANNED,
    "--n-gpu-layers": PLANNED,
    "--gpu-layers": PLANNED,
    "--num-gpu": PLANNED,
    "--gpu-memory-utilization": PLANNED,
    "--format": FREE,
    "--reasoning": "It is --think or --no-think here.",
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
COMMANDS = {
    "run": "hgca chat -m MODEL talks to a model.",
    "generate": "hgca chat -p TEXT answers once.",
    "list": "hgca models ls lists models.",
    "ls": "hgca models ls lists models.",
    "show": "hgca models ls lists models; hgca chat -m MODEL --plan shows what one needs.",
    "serve": "There is no server; hgca chat -p TEXT --json is for programs.",
    "env": "hgca doctor shows the environment.",
}


def refuse_foreign(words: list[str]) -> None:
    """Raises UsageError for an option of a chat or a job that only another tool has; an abbreviation of ours may look like it."""
    command = next((word for word in words if word in ("chat", "batch")), None)
    if command is None:
        return
    flags = FLAGS | (CHAT if command == "chat" else JOB)
    for before, word in zip(["", *words], words, strict=False):
        name = word.partition("=")[0]
        if name in flags and before not in ("-p", "--prompt", "-s", "--system", "--stop"):
            raise UsageError(f"no such option: {name}.", flags[name])


def hint_for(message: str, hint: str) -> str:
    """A better hint, if what was told is that there is no command of a name that other tools have."""
    found = re.match(r"No such command '(\w+)'", message)
    return COMMANDS.get(found[1], hint) if found else hint
