"""What the Megatron engine can do."""

from rlinf_graph.nodes.capabilities import Capabilities, Support

CAPABILITIES = Capabilities(
    name="megatron",
    tasks=("forward", "train"),
    heads=("lm", "value"),
    kinds={
        "gpu": Support(
            axes=("dp", "tp", "pp", "vp", "cp", "ep", "optimizer"),
            packages=("megatron-core==0.16.1",),
            install='pip install "rlinf-graph[megatron]"',
            selective=True,
            dtypes=("float32", "bfloat16"),
            offload=("weights", "optimizer"),
        ),
        "cpu": Support(
            axes=("dp", "tp", "pp"),
            packages=("megatron-core==0.16.1",),
            install='pip install "rlinf-graph[megatron]"',
            unasked=False,
            untied=("pp",),
            dtypes=("float32",),
            notes=(
                "over gloo, for tests; no distributed optimizer and no sequence parallelism",
                "its own data-parallel wrapper and fused kernels need GPUs",
            ),
        ),
    },
    architectures=("llama", "qwen2", "qwen3", "qwen3_moe"),
    hosted=True,
    joined=True,
)
