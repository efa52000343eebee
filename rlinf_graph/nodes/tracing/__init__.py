"""Captures what a module computes by running it on tensors without storage; imported when used."""
