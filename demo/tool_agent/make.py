"""Makes problems that need a tool, demonstrations of it, and the shape of the small decoder.

    python demo/tool_agent/make.py [FOLDER]

Three kinds of problems: `37*42=` needs a calculator, `rev(tiro)=` and `sort(tiro)=` need a line of
Python. The demonstrations come from a careless teacher, who calls a tool in a third of them and
otherwise answers at once, and wrongly: `37*42=1200`, the product of the tens. Only with sorting is
the teacher careful more often than not. A demonstration with a tool is two rows: the problem and
the call; problem, call and the tool's answer, and what to say then. So nothing learns to write what
a tool answers.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path

KINDS = {"mul": 3000, "rev": 1500, "sort": 1500}
"""Problems to train on, of each kind."""

HELD_OUT = {"mul": 200, "rev": 100, "sort": 100}
CAREFUL = {"mul": 0.2, "rev": 0.2, "sort": 0.65}
"""How often the teacher calls a tool."""

CONSONANTS, VOWELS = "bdfgklmnprst", "aeiou"
WORDS = ("<calc>", "</calc>", "<python>", "</python>", "print", "sorted", "join", "rev", "sort")
TOKENS = ("<pad>", "<bos>", "<eos>", *WORDS, *"0123456789", *CONSONANTS, *VOWELS, *"*+-=()[]':.")


def problems(kind: str, draw: random.Random) -> list[str]:
    """All that is asked in a kind of problem, in a drawn order.

    Products have four digits, so that right answers of all kinds have four characters; the careless
    answers are wrong.
    """
    if kind == "mul":
        numbers = range(11, 100)
        found = [f"{a}*{b}" for a in numbers for b in numbers if a * b >= 1000]
    else:
        syllables = [c + v for c in CONSONANTS for v in VOWELS]
        found = [one + two for one in syllables for two in syllables]
    found = [asked for asked in found if by_head(kind, asked) != truth(kind, asked)]
    return draw.sample(found, len(found))


def prompt(kind: str, asked: str) -> str:
    """As the policy reads it."""
    return f"{asked}=" if kind == "mul" else f"{kind}({asked})="


def truth(kind: str, asked: str) -> str:
    """The right answer."""
    if kind == "mul":
        a, b = map(int, asked.split("*"))
        return str(a * b)
    return asked[::-1] if kind == "rev" else "".join(sorted(asked))


def by_head(kind: str, asked: str) -> str:
    """What the teacher says without a tool."""
    if kind == "mul":
        a, b = (int(number) // 10 * 10 for number in asked.split("*"))
        return str(a * b)
    return asked[2:] + asked[:2] if kind == "rev" else asked[::-1]


def call(kind: str, asked: str) -> str:
    """How a tool is asked."""
    if kind == "mul":
        return f"<calc>{asked}</calc>"
    code = f"'{asked}'[::-1]" if kind == "rev" else f"''.join(sorted('{asked}'))"
    return f"<python>print({code})</python>"


def demonstrations(kind: str, asked: list[str], draw: random.Random) -> Iterator[dict[str, str]]:
    """What the careless teacher does with each problem."""
    for one in asked:
        begin = prompt(kind, one)
        if draw.random() >= CAREFUL[kind]:
            yield {"prompt": begin, "completion": by_head(kind, one)}
            continue
        right, called = truth(kind, one), call(kind, one)
        yield {"prompt": begin, "completion": called}
        yield {"prompt": f"{begin}{called}[{right}]", "completion": right}


def model_config() -> dict[str, object]:
    """A Qwen2 decoder of half a million parameters."""
    return {
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "vocab_size": len(TOKENS),
        "hidden_size": 128,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 256,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def save_tokenizer(folder: Path) -> None:
    """One token a character or word of `WORDS`, and a start token before every prompt."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex(f"{'|'.join(WORDS)}|."), "isolated")
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def main(folder: Path) -> None:
    """Write everything."""
    draw = random.Random(2026)
    train: list[dict[str, str]] = []
    held: list[dict[str, str]] = []
    shown: list[dict[str, str]] = []
    for kind, count in KINDS.items():
        asked = problems(kind, draw)[: count + HELD_OUT[kind]]
        rows = [{"prompt": prompt(kind, one), "truth": truth(kind, one)} for one in asked]
        train += rows[:count]
        held += rows[count:]
        shown += demonstrations(kind, asked[:count], draw)
    for name, rows in {"train": train, "heldout": held, "demonstrations": shown}.items():
        text = "".join(json.dumps(row) + "\n" for row in draw.sample(rows, len(rows)))
        (folder / f"{name}.jsonl").write_text(text)
    decoder = folder / "decoder"
    decoder.mkdir(exist_ok=True)
    (decoder / "config.json").write_text(json.dumps(model_config(), indent=1) + "\n")
    save_tokenizer(decoder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
