import subprocess
import sys
import time

from rlinf_graph.ir.work import Generate, Lengths

DECILES = Lengths(tuple(float(n) for n in range(100, 1100, 100)), "declared")


def test_a_rollout_is_costed_in_less_than_a_millisecond(case) -> None:
    made = case(Generate(4096, 200, DECILES, 8), tp=2, dp=4, engine="vllm")
    made.cost()
    count = 300
    start = time.perf_counter()
    for kept in range(count):
        made.cost(float(kept))
    assert (time.perf_counter() - start) / count < 1e-3


def test_importing_the_cost_model_loads_nothing_heavy() -> None:
    code = "import sys, rlinf_graph.compiler.cost; print(*sys.modules)"
    asked = [sys.executable, "-c", code]
    loaded = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "transformers", "scipy", "pandas", "ray"}.intersection(loaded)
