"""Engines in worker processes of their own: on several devices, or with another interpreter."""

from rlinf_graph.backends.ray.hosted.launch import HostedEngines, Pythons
from rlinf_graph.backends.ray.hosted.proxy import Proxy

__all__ = ["HostedEngines", "Proxy", "Pythons"]
