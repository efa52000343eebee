"""The engine that trains with Megatron-core. Only `engine` and what it imports need it."""
