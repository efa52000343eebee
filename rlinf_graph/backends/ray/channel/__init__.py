"""Channels between processes: `rlinf_graph.backends.ray.channel.channel.Channel`."""
