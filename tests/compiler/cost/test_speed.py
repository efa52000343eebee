import subprocess
import sys
from collections import Counter

from rlinf_graph.ir.work import Generate, Lengths

DECILES = Lengths(tuple(float(n) for n in range(100, 1100, 100)), "declared")


def test_a_rollout_is_costed_in_few_steps(case) -> None:
    """A search costs thousands: about 0.35 ms each, of which a Python call is a good measure."""
    made = case(Generate(4096, 200, DECILES, 8), tp=2, dp=4, engine="vllm")
    made.cost()
    calls = Counter[str]()
    sys.setprofile(lambda _frame, event, _value: calls.update([event]))
    try:
        made.cost(1.0)
    finally:
        sys.setprofile(None)
    assert 50 < calls["call"] < 400


def test_importing_the_cost_model_loads_nothing_heavy() -> None:
    code = "import sys, rlinf_graph.compiler.cost; print(*sys.modules)"
    asked = [sys.executable, "-c", code]
    loaded = subprocess.run(asked, check=True, capture_output=True, text=True).stdout.split()
    assert not {"torch", "transformers", "scipy", "pandas", "ray"}.intersection(loaded)
