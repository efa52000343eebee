"""The engine that samples with vLLM. Only `engine` and what it imports need vLLM."""
