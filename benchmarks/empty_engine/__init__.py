"""An engine that does nothing, for benchmarks/overhead.py."""
