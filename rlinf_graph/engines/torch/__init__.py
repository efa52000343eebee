"""The engine that runs anywhere: transformers' models in plain torch."""
