"""The public names: `from rlinf_graph import rl`."""

from rlinf_graph.dsl.env import Env
from rlinf_graph.dsl.feedback import sync
from rlinf_graph.dsl.loop import carry, state, unroll
from rlinf_graph.dsl.model import Frozen, Model, Served
from rlinf_graph.dsl.node import Call, node
from rlinf_graph.dsl.pipeline import Pipeline, pipeline
from rlinf_graph.ir.batch import Batch, Granularity, TokenBatch, objects, per_sample, per_token
from rlinf_graph.ir.batches import (
    Actions,
    Advantages,
    Demand,
    Dialogs,
    Examples,
    Observations,
    Prompt,
    Prompts,
    ProximalLogprobs,
    ReferenceLogprobs,
    Returns,
    Rewards,
    Rollouts,
    Scalars,
    StepRewards,
    StepValues,
    TokenAdvantages,
    TokenExamples,
    TokenRewards,
    Transitions,
    Values,
    Weights,
)
from rlinf_graph.ir.diagnostic import CompileError, Diagnostic
from rlinf_graph.ir.node_type import Place, Port, Role, Unit
from rlinf_graph.ir.value import struct
from rlinf_graph.ir.work import Forward, Generate, HostWork, Lengths, Train, Volume, Work
from rlinf_graph.nodes.advantage import gae, group_advantages
from rlinf_graph.nodes.coefficient import adapt_kl, constant
from rlinf_graph.nodes.data import dataset, examples
from rlinf_graph.nodes.dialog import grade, open_dialogs, reply
from rlinf_graph.nodes.engine import Outputs, TrainBatch
from rlinf_graph.nodes.env import act, each_step, play, reset, step
from rlinf_graph.nodes.evaluate import evaluate
from rlinf_graph.nodes.execution import emit, engine_of, metric
from rlinf_graph.nodes.filter import demand, keep_mixed, settle
from rlinf_graph.nodes.loss import GRPOLoss, Loss, PPOLoss, SupervisedLoss, ValueLoss
from rlinf_graph.nodes.metric import Metrics
from rlinf_graph.nodes.optimizer import AdamW
from rlinf_graph.nodes.refill import refill
from rlinf_graph.nodes.reward import kl_penalty, overlong_penalty, score, verify
from rlinf_graph.nodes.rollout import (
    logprobs,
    proximal_logprobs,
    reference_logprobs,
    rollout,
    values,
)
from rlinf_graph.nodes.sandbox import Sandbox
from rlinf_graph.nodes.tool_use import call_tools, use_tools
from rlinf_graph.nodes.tools import Http
from rlinf_graph.nodes.traced import Input, traced
from rlinf_graph.nodes.train import train

SAMPLE, GROUP, BATCH = Unit.SAMPLE, Unit.GROUP, Unit.BATCH

__all__ = [
    "BATCH",
    "GROUP",
    "SAMPLE",
    "Actions",
    "AdamW",
    "Advantages",
    "Batch",
    "Call",
    "CompileError",
    "Demand",
    "Diagnostic",
    "Dialogs",
    "Env",
    "Examples",
    "Forward",
    "Frozen",
    "GRPOLoss",
    "Generate",
    "Granularity",
    "HostWork",
    "Http",
    "Input",
    "Lengths",
    "Loss",
    "Metrics",
    "Model",
    "Observations",
    "Outputs",
    "PPOLoss",
    "Pipeline",
    "Place",
    "Port",
    "Prompt",
    "Prompts",
    "ProximalLogprobs",
    "ReferenceLogprobs",
    "Returns",
    "Rewards",
    "Role",
    "Rollouts",
    "Sandbox",
    "Scalars",
    "Served",
    "StepRewards",
    "StepValues",
    "SupervisedLoss",
    "TokenAdvantages",
    "TokenBatch",
    "TokenExamples",
    "TokenRewards",
    "Train",
    "TrainBatch",
    "Transitions",
    "Unit",
    "ValueLoss",
    "Values",
    "Volume",
    "Weights",
    "Work",
    "act",
    "adapt_kl",
    "call_tools",
    "carry",
    "constant",
    "dataset",
    "demand",
    "each_step",
    "emit",
    "engine_of",
    "evaluate",
    "examples",
    "gae",
    "grade",
    "group_advantages",
    "keep_mixed",
    "kl_penalty",
    "logprobs",
    "metric",
    "node",
    "objects",
    "open_dialogs",
    "overlong_penalty",
    "per_sample",
    "per_token",
    "pipeline",
    "play",
    "proximal_logprobs",
    "reference_logprobs",
    "refill",
    "reply",
    "reset",
    "rollout",
    "score",
    "settle",
    "state",
    "step",
    "struct",
    "sync",
    "traced",
    "train",
    "unroll",
    "use_tools",
    "values",
    "verify",
]
