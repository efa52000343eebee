"""Dialogs of random words in double precision: a plus sign and a digit are a call of a tool."""

from pathlib import Path

from rlinf_graph import rl

DATA = Path(__file__).parents[2] / "demo" / "arithmetic"
CALL = r"(?P<tool>[+-])(?P<argument>\d)"
NEVER = "(?P<tool>never)(?P<argument>)"

policy = rl.Model(str(Path(__file__).parent / "decoder"), weights="random", dtype="float64")


def next_digit(argument: str) -> str:
    return str((int(argument) + 1) % 10)


def broken(argument: str) -> str:
    raise ValueError("0-0")


def low_digits(answer: str) -> float:
    """A reward that random answers earn now and then, so that gradients are not zero."""
    return sum(character in "0123" for character in answer) / 6


@rl.pipeline
def small_dialogs(batch: int = 8, minibatch: int = 16, call: str = CALL) -> None:
    def turn(dialogs: rl.Dialogs) -> rl.Dialogs:
        spoken = rl.reply(policy, dialogs, max_tokens=6, lengths=6)
        tools = {"+": next_digit, "-": broken}
        return rl.use_tools(spoken, tools, call=call, form="={}", limit=14)

    prompts = rl.dataset(str(DATA / "train.jsonl"), batch=batch)
    start = rl.open_dialogs(prompts, samples=4)
    dialogs = rl.unroll(turn, start=start, length=3, until="done", steps=2)
    advantages = rl.group_advantages(rl.verify(dialogs, low_digits))
    weights = rl.train(
        policy, dialogs, advantages, minibatch=minibatch, optimizer=rl.AdamW(lr=1e-3)
    )
    rl.sync(weights, into=policy)


@rl.pipeline
def spoken_only() -> None:
    """Dialogs that nothing trains on and nothing grades."""
    prompts = rl.dataset(str(DATA / "train.jsonl"), batch=4)
    rl.reply(policy, rl.open_dialogs(prompts))
