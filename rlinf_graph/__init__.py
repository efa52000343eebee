"""rlinf-graph: a compiler for reinforcement-learning pipelines."""

__version__ = "0.1.0"
