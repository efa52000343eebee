"""Layouts that a row does not give: the compiler's own choice for the same iteration."""

from __future__ import annotations

from dataclasses import dataclass

from rlinf_graph import rl
from rlinf_graph.compiler.compile import compile_graph
from rlinf_graph.ir.cluster import Cluster
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.ir.plan import NodePlan, show_devices
from rlinf_graph.nodes.lengths import log_normal

WIDTH = 0.8
"""Of the log-normal lengths that the choice is made with, before anything is fitted."""


@dataclass(frozen=True)
class Iteration:
    """What the compiler has to know of an iteration.

    Attributes:
        model: hub name.
        cluster: its devices.
        prompts, group: how many, and responses of each.
        prompt, mean, limit: tokens of a prompt, of a response, and of a response at most.
        optimizer_steps: of an iteration.
        depth: iterations that samples may be stale.
        sampler, trainer: devices of each side.
    """

    model: str
    cluster: Cluster
    prompts: int
    group: int
    prompt: int
    mean: float
    limit: int
    optimizer_steps: int
    depth: int
    sampler: range
    trainer: range

    def choose(self, sampler: str, trainer: str) -> tuple[NodePlan, NodePlan] | None:
        """Settings of sampling and training; None where the compiler finds no plan.

        Args:
            sampler, trainer: what is given of each side, as a pin's words: `tp 8`.
        """
        pins = {
            "rollout policy": f"{show_devices(self.sampler)} {sampler}".strip(),
            "train policy": f"{show_devices(self.trainer)} {trainer}".strip(),
        }
        try:
            plan = compile_graph(self._pipeline().build(), self.cluster, pins=pins).plan
        except CompileError:
            return None
        return plan.settings("rollout policy"), plan.settings("train policy")

    def _pipeline(self) -> rl.Pipeline:
        policy = rl.Model(self.model)
        reference = policy.frozen()
        lengths = log_normal(self.mean, self.limit, WIDTH)

        @rl.pipeline
        def grpo() -> None:
            prompts = rl.dataset("openai/gsm8k", batch=self.prompts, prompt_tokens=self.prompt)
            rollouts = rl.rollout(
                policy, prompts, samples=self.group, max_tokens=self.limit, lengths=lengths
            )
            rewards = rl.verify(rollouts, lambda answer, truth: float(answer == truth))
            weights = rl.train(
                policy,
                rollouts,
                rl.group_advantages(rewards),
                reference=rl.logprobs(reference, rollouts),
                loss=rl.GRPOLoss(kl=0.01),
                minibatch=self.prompts * self.group // self.optimizer_steps,
            )
            rl.sync(weights, into=policy, max_staleness=self.depth)

        return grpo
