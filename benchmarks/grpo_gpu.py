"""GRPO of a 0.5B and a 1.5B model in bfloat16, torch engine on both sides: throughput and MFU.

    python benchmarks/grpo_gpu.py [--sizes 0.5B 1.5B] [--cluster local] [--out FOLDER]

For each size a model of Qwen2.5's shape with random weights is made, profiled (the profile is left
in the folder) and trained for some iterations, of which the first does not count. A table has, for
decoding, log-probabilities, training and the optimizer, what was measured beside the estimate from
the catalogue's figures alone. FLOPs of a token are 2 for each weight that multiplies it, and 6 in
training (Kaplan et al. 2020, table 1, without attention); MFU is their share of the device's peak
in bfloat16. `--sizes tiny` shows on a processor that the script works.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, Qwen2Config

from rlinf_graph import rl
from rlinf_graph.cli.analysis import write_analysis
from rlinf_graph.cli.api import compile_pipeline, run_compiled
from rlinf_graph.cli.profiling import Profiled, profile_pipeline
from rlinf_graph.compiler.cost import profile as profiles
from rlinf_graph.dsl.pipeline import Pipeline
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.cluster_file import load_cluster
from rlinf_graph.ir.measurement import Measurement

ROOT = Path(__file__).parents[1]
TOKENIZER = ROOT / "demo" / "arithmetic" / "decoder"
ITERATIONS = 3
SIZES: dict[str, dict[str, Any]] = {
    "tiny": {
        "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "intermediate_size": 128, "vocab_size": 512,
    },
    "0.5B": {
        "hidden_size": 896, "num_hidden_layers": 24, "num_attention_heads": 14,
        "num_key_value_heads": 2, "intermediate_size": 4864, "vocab_size": 151936,
    },
    "1.5B": {
        "hidden_size": 1536, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "intermediate_size": 8960, "vocab_size": 151936,
    },
}  # fmt: skip
"""Shapes of Qwen2.5-0.5B and -1.5B (their configuration files); embeddings are tied."""

LOAD: dict[str, tuple[int, int, int]] = {"tiny": (4, 2, 8), "0.5B": (32, 8, 256),
                                         "1.5B": (32, 8, 256)}  # fmt: skip
"""Prompts, samples of each, and tokens of a response at most."""

FACTORS = {"accumulate": 6}
"""FLOPs of a token and weight; 2 where nothing is trained."""


def made_model(folder: Path, size: str) -> int:
    """Write configuration and tokenizer; the weights that multiply a token."""
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(TOKENIZER / name, folder)
    fixed = {
        "tie_word_embeddings": True,
        "max_position_embeddings": 4096,
        "torch_dtype": "bfloat16",
    }
    config = Qwen2Config(**SIZES[size], **fixed, architectures=["Qwen2ForCausalLM"])
    config.save_pretrained(folder)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    return sum(p.numel() for p in model.parameters())  # tied: the embedding counts as the head


def pipeline_of(model: Path, data: Path, size: str) -> Pipeline:
    """GRPO with a reference model."""
    prompts, samples, tokens = LOAD[size]
    policy = rl.Model(str(model), weights="random", dtype="bfloat16", rollout="torch",
                      train="torch")  # fmt: skip
    reference = policy.frozen()

    def is_even(answer: str) -> float:
        return float(len(answer) % 2 == 0)

    @rl.pipeline
    def grpo_gpu() -> None:
        problems = rl.dataset(str(data), batch=prompts, prompt_tokens=7)
        rollouts = rl.rollout(policy, problems, samples=samples, max_tokens=tokens, lengths=tokens)
        rewards = rl.verify(rollouts, is_even)
        references = rl.logprobs(reference, rollouts)
        advantages = rl.group_advantages(rewards)
        loss = rl.GRPOLoss(kl=1e-3)
        weights = rl.train(policy, rollouts, advantages, reference=references, loss=loss)
        rl.sync(weights, into=policy)

    return grpo_gpu


def rows(profiled: Profiled, weights: int, peak: float) -> list[dict[str, Any]]:
    """Of the largest measurement of each kind of device work, with the catalogue's estimate."""
    found: list[dict[str, Any]] = []
    for fit in profiled.fits:
        made, estimate = fit.pairs[-1]
        if made.kind not in ("chunk", "accumulate", "optimizer_step"):
            continue
        tokens = tokens_of(made)
        flops = FACTORS.get(made.kind, 2) * weights * tokens
        found.append({
            "node": made.node, "kind": made.kind, "tokens": tokens,
            "measured_s": made.median, "estimated_s": estimate,
            "tokens_per_s": tokens / made.median,
            "mfu": flops / made.median / peak, "estimated_mfu": flops / max(estimate, 1e-12) / peak,
        })  # fmt: skip
    return found


def tokens_of(made: Measurement) -> float:
    """Tokens that a measurement's work was of: generated ones, or those of whole sequences."""
    if made.kind == "optimizer_step" or not made.lengths:
        return 0.0
    return made.samples * sum(made.lengths) / len(made.lengths)


def iteration(pipeline: Pipeline, cluster: Cluster, folder: Path) -> dict[str, float]:
    """Seconds of an iteration: the median of those that were run, and the catalogue's estimate."""
    compiled = compile_pipeline(pipeline, cluster)
    done = run_compiled(compiled, iterations=ITERATIONS, folder=folder, backend="ray")
    report = write_analysis(compiled, done, folder, "ray")
    seconds = [record["seconds"] for record in done.records[1:]]
    return {"measured_s": median(seconds), "estimated_s": report.seconds}


def measure(size: str, cluster: Cluster, out: Path) -> dict[str, Any]:
    """Everything of one size; the profile is left in `out`."""
    device = cluster.groups[0].device
    with tempfile.TemporaryDirectory() as name:
        model, data = Path(name) / "model", Path(name) / "data.jsonl"
        model.mkdir()
        weights = made_model(model, size)
        asked = [json.dumps({"prompt": f"{n % 90 + 10}+{n % 80 + 11}=", "answer": "0"})
                 for n in range(4 * LOAD[size][0])]  # fmt: skip
        data.write_text("\n".join(asked))
        pipeline = pipeline_of(model, data, size)
        profiled = profile_pipeline(pipeline, cluster)
        file = out / f"profile_{device.name}_{size}.json"
        file.write_text(profiles.dumps(profiled.profile))
        whole = iteration(pipeline, cluster, Path(name) / "run")
    peak = device.peak("bfloat16")
    return {
        "size": size, "device": device.name, "weights": weights, "peak_flops": peak,
        "date": profiled.profile.date, "versions": profiled.profile.versions,
        "rows": rows(profiled, weights, peak), "iteration": whole,
    }  # fmt: skip


def text(found: dict[str, Any]) -> str:
    """A table of one size."""
    lines = [
        f"{found['size']} on {found['device']}, {found['weights'] / 1e6:.4g} M weights",
        f"{'node':<22}{'kind':<16}{'tokens/s':>12}{'measured s':>12}{'estimate s':>12}"
        f"{'MFU':>8}{'estimate':>10}",
    ]
    for row in found["rows"]:
        speed = f"{row['tokens_per_s']:,.0f}" if row["tokens"] else "-"
        shares = [f"{row[n]:.1%}" if row["tokens"] else "-" for n in ("mfu", "estimated_mfu")]
        lines.append(
            f"{row['node']:<22}{row['kind']:<16}{speed:>12}"
            f"{row['measured_s']:>12.4g}{row['estimated_s']:>12.4g}"
            f"{shares[0]:>8}{shares[1]:>10}"
        )
    whole = found["iteration"]
    lines.append(f"{'iteration':<50}{whole['measured_s']:>12.4g}{whole['estimated_s']:>12.4g}")
    return "\n".join(lines)


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=["0.5B", "1.5B"])
    parser.add_argument("--cluster", default="local")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    arguments = parser.parse_args()
    cluster = load_cluster(arguments.cluster)
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = []
    for size in arguments.sizes:
        results.append(measure(size, cluster, arguments.out))
        print(text(results[-1]), flush=True)
    file = arguments.out / f"grpo_gpu_{cluster.groups[0].device.name}.json"
    file.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
