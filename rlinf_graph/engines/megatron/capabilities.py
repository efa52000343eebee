"""What the Megatron engine can do."""

from dataclasses import replace

from rlinf_graph.nodes.capabilities import Capabilities, Support

GPU = Support(
    axes=("dp", "tp", "pp", "cp", "optimizer"),
    planned=("vp", "ep"),
    packages=("megatron-core==0.16.1",),
    install='pip install "rlinf-graph[megatron]"',
    dtypes=("float32", "bfloat16"),
    offload=("weights", "optimizer"),
    notes=(
        "with tp, tokens are spread over it between attention and feed-forward layers",
        "ep is not run: replicas are called one by one, and each has to hold all experts",
        "with `optimizer`, replicas share master weights and optimizer states (ZeRO stage 1)",
    ),
)

CAPABILITIES = Capabilities(
    name="megatron",
    tasks=("forward", "train"),
    heads=("lm", "value"),
    kinds={
        "gpu": GPU,
        "cpu": replace(
            GPU,
            unasked=False,
            offload=(),
            notes=(*GPU.notes, "over gloo: for tests, not for speed"),
        ),
    },
    architectures=("llama", "qwen2", "qwen3", "qwen3_moe"),
    hosted=True,
    joined=True,
)
