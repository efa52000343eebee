"""A policy learns to ask tools: a calculator, and Python in a sandbox.

python demo/tool_agent/main.py
rlinf-graph compile pipelines/tool_agent.py:tool_agent --explain
rlinf-graph run pipelines/tool_agent.py:warm_up --iterations 300 --out runs/tool_warm_up
rlinf-graph run pipelines/tool_agent.py:tool_agent --init policy=runs/tool_warm_up/checkpoint/policy
"""

import ast
import operator

from rlinf_graph import rl

DATA = "demo/tool_agent"

policy = rl.Model(f"{DATA}/decoder", weights="random")

OPERATIONS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}


def calculate(expression: str) -> str:
    def value(part: ast.expr) -> int:
        match part:
            case ast.Constant(value=int(number)):
                return number
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return -value(operand)
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATIONS:
                return OPERATIONS[type(op)](value(left), value(right))
        raise ValueError("only + - * of integers")

    return str(value(ast.parse(expression.strip(), mode="eval").body))


TOOLS = {"calc": calculate, "python": rl.Sandbox(seconds=1.0)}


def is_correct(answer: str, truth: str) -> float:
    return float(answer == truth)


def talk(problems: rl.Prompts, samples: int = 1, temperature: float = 1.0) -> rl.Dialogs:
    def turn(dialogs: rl.Dialogs) -> rl.Dialogs:
        stop = ("</calc>", "</python>")
        spoken = rl.reply(
            policy, dialogs, max_tokens=24, temperature=temperature, stop=stop, lengths=14
        )
        return rl.use_tools(spoken, TOOLS, form="[{}]", limit=24)

    start = rl.open_dialogs(problems, samples=samples)
    return rl.unroll(turn, start=start, length=3, until="done", steps=2)


@rl.pipeline
def warm_up(batch: int = 64, iterations: int = 300) -> None:
    examples = rl.examples(f"{DATA}/demonstrations.jsonl", batch=batch)
    optimizer = rl.AdamW(
        lr=1.5e-3, betas=(0.9, 0.95), schedule="linear", warmup_steps=20, total_steps=iterations
    )
    rl.train(policy, examples, loss=rl.SupervisedLoss(), optimizer=optimizer)


@rl.pipeline
def exam() -> None:
    problems = rl.dataset(f"{DATA}/heldout.jsonl", shuffle=False, prompt_tokens=9)
    rl.grade(talk(problems, temperature=0.0), is_correct, name="exact_match")


@rl.pipeline
def tool_agent(prompts: int = 16, samples: int = 8, iterations: int = 60) -> None:
    problems = rl.dataset(f"{DATA}/train.jsonl", batch=prompts, prompt_tokens=9)
    dialogs = talk(problems, samples)
    rewards = rl.verify(dialogs, is_correct)
    advantages = rl.group_advantages(rewards)
    optimizer = rl.AdamW(
        lr=1.5e-4, betas=(0.9, 0.95), schedule="linear", warmup_steps=10, total_steps=2 * iterations
    )
    weights = rl.train(
        policy, dialogs, advantages, minibatch=prompts * samples // 2, optimizer=optimizer
    )
    rl.sync(weights, into=policy, max_staleness=0)
