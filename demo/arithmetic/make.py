"""Makes the arithmetic problems, the demonstrations and the shape of the small decoder.

    python demo/arithmetic/make.py [FOLDER]

All sums of two numbers below 100 are problems, 10,000 of them, written with leading zeros:
`07+05=` asks for `012`. Held-out pairs are drawn without regard to order, so that `b+a` never gives
`a+b` away. The demonstrations come from a careless teacher, who forgets the carry two times in
three (`47+38=075`): nearly half of the demonstrations are wrong, and reinforcement with a verifier
has to mend that.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterable
from pathlib import Path

LIMIT = 100
HELD_OUT = 1000
CARELESS = 0.65
TOKENS = ("<pad>", "<bos>", "<eos>", *"0123456789", "+", "-", "=")


def split_pairs(seed: int = 2026) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Problems to train on, and problems held out; no pair is in both in any order."""
    draw = random.Random(seed)
    pairs = [(a, b) for a in range(LIMIT) for b in range(a, LIMIT)]
    draw.shuffle(pairs)
    held = [(a, b) if draw.random() < 0.5 else (b, a) for a, b in pairs[:HELD_OUT]]
    train = sorted({order for a, b in pairs[HELD_OUT:] for order in ((a, b), (b, a))})
    return train, held


def without_carry(a: int, b: int) -> int:
    """The sum of each column, the carry forgotten."""
    return (a // 10 + b // 10) % 10 * 10 + (a % 10 + b % 10) % 10


def problem(a: int, b: int) -> dict[str, str]:
    """A prompt and the answer that is right."""
    return {"prompt": asked(a, b), "truth": f"{a + b:03}"}


def asked(a: int, b: int) -> str:
    """The prompt of a problem."""
    return f"{a:02}+{b:02}="


def demonstrations(pairs: list[tuple[int, int]], seed: int = 7) -> Iterable[dict[str, str]]:
    """What the careless teacher writes for each problem."""
    draw = random.Random(seed)
    for a, b in pairs:
        answer = without_carry(a, b) if draw.random() < CARELESS else a + b
        yield {"prompt": asked(a, b), "completion": f"{answer:03}"}


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
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10000.0,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }


def save_tokenizer(folder: Path) -> None:
    """One token a character, and a start token before every prompt."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    made = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="<pad>"))
    made.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    made.decoder = decoders.Fuse()
    made.post_processor = processors.TemplateProcessing(
        single="<bos> $A", special_tokens=[("<bos>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>"
    ).save_pretrained(folder)


def main(folder: Path) -> None:
    """Write everything."""
    train, held = split_pairs()
    files = {
        "train.jsonl": [problem(a, b) for a, b in train],
        "heldout.jsonl": [problem(a, b) for a, b in held],
        "demonstrations.jsonl": list(demonstrations(train)),
    }
    for name, rows in files.items():
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    decoder = folder / "decoder"
    decoder.mkdir(exist_ok=True)
    (decoder / "config.json").write_text(json.dumps(model_config(), indent=1) + "\n")
    save_tokenizer(decoder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
