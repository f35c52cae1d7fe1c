"""Other tools' spellings of our flags."""

from __future__ import annotations

# Accepted everywhere and not shown in --help.
ALIASES = {
    "--ctx-size": "--ctx",
    "--num-ctx": "--ctx",
    "--max-model-len": "--ctx",
    "--context-length": "--ctx",
    "--n-predict": "--max-tokens",
    "--predict": "--max-tokens",
    "--num-predict": "--max-tokens",
    "--max-new-tokens": "--max-tokens",
    "--max-completion-tokens": "--max-tokens",
    "--temperature": "--temp",
    "--repetition-penalty": "--repeat-penalty",
    "--reverse-prompt": "--stop",
    "--system-prompt": "--system",
    "-sys": "--system",
    "-sysf": "--system-file",
    "-hf": "--model",
    "--hidethinking": "--hide-thinking",
    "--system-prompt-file": "--system-file",
    "--chat-template-file": "--chat-template",
    "--kv-cache-dtype": "--kv-dtype",
    "--cache-type": "--kv-dtype",
    "--quantization": "--quant",
    "--quantize": "--quant",
    "--load-in-8bit": "--quant=q8",
    "--load-in-4bit": "--quant=q4",
    "--prompt-lookup-num-tokens": "--prompt-lookup",
    "--draft": "--prompt-lookup",
    "--draft-max": "--prompt-lookup",
    "--draft-n": "--prompt-lookup",
    "--sink": "--sinks",
    "--dense": "--exact",
    "--gpu-memory": "--gpu-mem",
    "--fit-target": "--vram-margin",
    "-np": "--concurrency",
    "--parallel": "--concurrency",
    "--max-inflight": "--concurrency",
    "--max-num-seqs": "--concurrency",
    "--prefill-step-size": "--prefill-chunk",
    "--chunked-prefill-size": "--prefill-chunk",
}


SAID = ("-p", "--prompt", "-s", "--system", "--stop")  # the next word is a text, whatever it looks like


def dashed(arguments: list[str]) -> list[str]:
    """Long options in dashes where they were written with underscores, as Python's tools take them (--max_new_tokens). What
    `hgca eval harness` hands on is left alone, and so is what follows `--`.
    """
    own, rest = split_words(arguments)
    if "harness" in own:
        return arguments
    spelled: list[str] = []
    for before, word in zip(["", *own], own, strict=False):
        name, equals, value = word.partition("=")
        option = name.startswith("--") and before not in SAID
        spelled.append((name.replace("_", "-") if option else name) + equals + value)
    return spelled + rest


def rename_aliases(arguments: list[str]) -> list[str]:
    """Arguments in our own spelling; what follows `--` is left alone."""
    own, rest = split_words(arguments)
    renamed: list[str] = []
    for word in own:
        name, equals, value = word.partition("=")
        renamed.append(ALIASES.get(name, name) + equals + value)
    return renamed + rest


def config_first(arguments: list[str]) -> list[str]:
    """With --config before the command, wherever it stood: what a file says must be known before a command is looked at."""
    own, rest = split_words(arguments)
    for at, word in enumerate(own):
        if word.startswith("--config="):
            return [word, *own[:at], *own[at + 1 :], *rest]
        if word == "--config" and at + 1 < len(own):
            return [word, own[at + 1], *own[:at], *own[at + 2 :], *rest]
    return arguments


def split_words(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Arguments before `--`, and those from there on: words that are no flags, whatever they look like."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    return arguments[:end], arguments[end:]
