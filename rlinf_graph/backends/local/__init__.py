"""One process that carries out the instructions of all workers of any plan."""
