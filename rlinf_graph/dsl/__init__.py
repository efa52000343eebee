"""The language: Python calls become a graph."""
