"""One GRPO run of TRL, for `grpo_vs_trl.py`, which says how it is set up; needs TRL only.

python benchmarks/grpo_of_trl.py SETTINGS OUT

SETTINGS is a JSON object: `checkpoint` and `data` (paths), `reward` (a name in `REWARDS`),
`prompts`, `samples`, `max_tokens`, `lr`, `beta2`, `iterations`, `threads`, `seed`. OUT gets
`seconds` and `rewards` of each iteration, and `versions`.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any


def sevens(answer: str) -> float:
    """Share of 16 characters that are a 7."""
    return answer.count("7") / 16


def is_correct(answer: str, truth: str) -> float:
    """Whether the answer is the truth."""
    return float(answer == truth)


REWARDS = {"sevens": sevens, "is_correct": is_correct}


def run(settings: dict[str, Any], folder: str) -> dict[str, Any]:
    """Train as the settings say; seconds and mean reward of each iteration."""
    import datasets
    import torch
    import transformers
    import trl

    torch.set_num_threads(settings["threads"])
    starts: list[float] = []
    rewards: list[float] = []

    class Laps(transformers.TrainerCallback):
        """When each iteration begins."""

        def on_step_begin(self, *_args: Any, **_more: Any) -> None:
            starts.append(time.perf_counter())

    def reward(completions: list[str], truth: list[str], **_columns: Any) -> list[float]:
        function: Any = REWARDS[settings["reward"]]
        pairs = zip(completions, truth, strict=True)
        told = settings["reward"] == "is_correct"
        given = [function(*pair) if told else function(pair[0]) for pair in pairs]
        rewards.append(sum(given) / len(given))
        return given

    config = trl.GRPOConfig(
        output_dir=folder, seed=settings["seed"], use_cpu=True, bf16=False,
        gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
        per_device_train_batch_size=settings["prompts"] * settings["samples"],
        num_generations=settings["samples"], max_completion_length=settings["max_tokens"],
        max_steps=settings["iterations"], learning_rate=settings["lr"],
        adam_beta2=settings["beta2"], lr_scheduler_type="constant", weight_decay=0.0,
        max_grad_norm=1.0, beta=0.0, epsilon=0.2, num_iterations=1, temperature=1.0,
        loss_type="dapo", scale_rewards="group",
    )  # fmt: skip
    path = settings["checkpoint"]
    trainer = trl.GRPOTrainer(
        model=transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32),
        processing_class=transformers.PreTrainedTokenizerFast.from_pretrained(path),
        reward_funcs=reward,
        args=config,
        train_dataset=datasets.load_dataset("json", data_files=settings["data"], split="train"),
        callbacks=[Laps()],
    )
    trainer.train()
    ends = [*starts, time.perf_counter()]
    return {
        "seconds": [b - a for a, b in pairwise(ends)],
        "rewards": rewards,
        "versions": {module.__name__: module.__version__ for module in (trl, transformers, torch)},
    }


def main() -> None:
    """Run, with as many threads as the settings say from the start of the process."""
    settings = json.loads(sys.argv[1])
    os.environ["OMP_NUM_THREADS"] = str(settings["threads"])
    os.environ["HF_HUB_OFFLINE"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        Path(sys.argv[2]).write_text(json.dumps(run(settings, folder)))


if __name__ == "__main__":
    main()
