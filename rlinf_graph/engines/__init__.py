"""Engines: what does the numerical work of nodes. Each implements `rlinf_graph.nodes.engine`."""
