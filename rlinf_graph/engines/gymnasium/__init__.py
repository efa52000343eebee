"""Environments of gymnasium, and whatever has its interface."""
