"""The cost model against published measurements: rows, fits, and how far off predictions are."""
