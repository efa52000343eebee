"""The intermediate forms: immutable data and its verification."""
