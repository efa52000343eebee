"""Which plan is best, by how much, and what is wrong with the others."""
