"""hgca: long-context LLM inference when the GPU is too small for the context."""

__version__ = "0.1.0"
