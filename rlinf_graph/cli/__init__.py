"""The command line: the only place that joins compiler and backends."""
