"""What RL means: the built-in node types, losses and optimizers. No engine is imported here."""
