"""What the empty engine can do: as much as is asked of it, at once."""

from rlinf_graph.nodes.capabilities import Capabilities, Support

CAPABILITIES = Capabilities(
    name="empty",
    tasks=("generate", "forward", "train"),
    heads=("lm",),
    kinds={"cpu": Support(axes=("dp",))},
    keyed=True,
)
