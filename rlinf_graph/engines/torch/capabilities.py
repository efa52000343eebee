"""What the torch engine can do."""

from rlinf_graph.nodes.capabilities import Capabilities, Support

_HERE = Support(
    axes=("dp",),
    planned=("fsdp",),
    packages=("torch", "transformers"),
    install='pip install "rlinf-graph"',
    dtypes=("float64", "float32", "bfloat16"),
    offload=("weights", "cache", "optimizer"),
)
CAPABILITIES = Capabilities(
    name="torch",
    tasks=("generate", "reply", "forward", "train", "act"),
    heads=("lm", "value", "score", "action"),
    kinds={"gpu": _HERE, "cpu": _HERE},
    keyed=True,
    small=True,
    interrupts=True,
)
