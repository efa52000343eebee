from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rlinf_graph.engines.torch import forward
from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.batches import Prompts, Rollouts, TokenExamples
from rlinf_graph.nodes.engine import Key, Outputs, Sampling, TrainBatch
from rlinf_graph.nodes.metric import Metrics

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]


class Seen:
    """A loss that keeps what it is given."""

    def __init__(self, reads: str = "logprobs", entropy: bool = False) -> None:
        self.reads: Any = reads
        self.entropy = entropy
        self.corrects_staleness = True
        self.outputs = Outputs()

    def needs(self) -> dict[str, str]:
        return {}

    def __call__(
        self, outputs: Outputs, batch: TrainBatch, metrics: Metrics
    ) -> tuple[Tensor, float]:
        self.outputs = outputs
        given = outputs.logprobs if outputs.values is None else outputs.values
        assert given is not None
        return given.sum(), float(len(batch.samples))


@pytest.fixture
def rollouts(make: Make, ask: Ask) -> Rollouts:
    texts = ("1+2=", "37+48=", "5=", "123+456=")
    sampling = Sampling(samples=2, max_tokens=9)
    return make().generate(ask(*texts), sampling, Key(0, "rollout", 0), 0)


def with_head(engine: TorchEngine) -> TorchEngine:
    draws = torch.Generator().manual_seed(3)
    head = torch.randn(1, 32, generator=draws, dtype=torch.float64)
    engine.update_weights([("head.weight", head)])
    return engine


def test_values_belong_to_the_state_before_each_token(make: Make, rollouts: Rollouts) -> None:
    engine = with_head(make("value", name="critic"))
    found = engine.values(rollouts)
    lengths = rollouts.lengths.tolist()
    assert found.shape == (sum(lengths) + len(lengths),)
    split = found.split([length + 1 for length in lengths])
    for tokens, values in zip(rollouts.tokens.split(lengths), split, strict=True):
        with torch.no_grad():
            hidden = engine.model.backbone(input_ids=tokens[None]).last_hidden_state[0]
        expected = hidden @ engine.model.head.weight[0]
        assert values[0] == 0
        torch.testing.assert_close(values[1:], expected, rtol=0, atol=1e-9)


def test_values_in_training_are_those_of_inference(make: Make, rollouts: Rollouts) -> None:
    engine, loss = with_head(make("value", name="critic", trainable=True)), Seen("values")
    engine.accumulate([TrainBatch(rollouts)], loss, Metrics())
    assert loss.outputs.values is not None
    kept = torch.ones(int(rollouts.lengths.sum()) + len(rollouts), dtype=torch.bool)
    kept[(rollouts.lengths + 1).cumsum(0) - 1] = False
    expected = engine.values(rollouts)[kept]
    torch.testing.assert_close(loss.outputs.values.detach(), expected, rtol=0, atol=1e-9)


def test_values_of_a_new_critic_are_zero(make: Make, rollouts: Rollouts) -> None:
    assert not make("value", name="critic").values(rollouts).any()


def test_logprobs_and_entropy_in_training(make: Make, rollouts: Rollouts) -> None:
    engine, loss = make(trainable=True), Seen(entropy=True)
    engine.accumulate([TrainBatch(rollouts)], loss, Metrics())
    assert loss.outputs.logprobs is not None
    assert loss.outputs.entropy is not None
    found = loss.outputs.logprobs.detach()
    torch.testing.assert_close(found, rollouts.logprobs, rtol=0, atol=1e-9)
    length = int(rollouts.lengths[0])
    with torch.no_grad():
        logits = engine.model(input_ids=rollouts.tokens[None, :length]).logits[0]
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    mask = rollouts.mask[:length]
    expected = torch.cat([entropy.new_zeros(1), entropy[:-1]]) * mask
    torch.testing.assert_close(loss.outputs.entropy[:length].detach(), expected)


def test_the_first_token_has_no_logprob(make: Make) -> None:
    engine, loss = make(trainable=True), Seen()
    tokens = torch.tensor([3, 4, 5, 6, 7])
    both = torch.arange(2)
    examples = TokenExamples(index=both, group=both, lengths=torch.tensor([3, 2]), tokens=tokens,
                             mask=torch.ones(5, dtype=torch.bool))  # fmt: skip
    engine.accumulate([TrainBatch(examples)], loss, Metrics())
    assert loss.outputs.logprobs is not None
    assert [bool(value) for value in loss.outputs.logprobs] == [False, True, True, False, True]


def test_passes_are_small_and_cover_every_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "PASS_TOKENS", 20)
    lengths = torch.tensor([3, 9, 1, 4, 30, 4, 5, 2])
    rows = list(forward.passes(lengths))
    assert sorted(row for part in rows for row in part.tolist()) == list(range(8))
    assert all(len(part) == 1 or len(part) * lengths[part].max() <= 20 for part in rows)
    assert [part.tolist() for part in rows] == [[2, 7, 0, 3, 5], [6, 1], [4]]


def test_results_do_not_depend_on_the_passes(
    make: Make, rollouts: Rollouts, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy, critic = make(), with_head(make("value", name="critic"))
    before = policy.logprobs(rollouts), critic.values(rollouts)
    monkeypatch.setattr(forward, "PASS_TOKENS", 20)
    after = policy.logprobs(rollouts), critic.values(rollouts)
    for a, b in zip(before, after, strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-9)


def test_scores_are_read_at_the_last_token(make: Make) -> None:
    engine = make("score", name="judge")
    texts = [("1+1=", "2"), ("12+34=", "46 a"), ("5", "")]
    found = engine.scores(texts)
    for (prompt, response), score in zip(texts, found, strict=True):
        tokens = torch.tensor([engine.tokenize(prompt + response)])
        with torch.no_grad():
            hidden = engine.model.backbone(input_ids=tokens).last_hidden_state[0, -1]
        assert abs(float(score - hidden @ engine.model.head.weight[0])) < 1e-9
    assert found.unique().numel() == 3
    assert engine.scores([]).shape == (0,)


def test_scores_go_through_the_chat_template(make: Make) -> None:
    engine = make("score", name="judge")
    plain = engine.scores([(" 1+1= ", "2 ")])
    engine._reader.tokenizer.chat_template = (
        "{% for m in messages %} {{ m['content'] }} {% endfor %}"
    )
    torch.testing.assert_close(engine.scores([("1+1=", "2")]), engine.scores([("1+1=", "2")]))
    assert engine._reader.conversation("1+1=", "2") == engine.tokenize(" 1+1=  2 ")
    assert float(engine.scores([("1+1=", "2")])) != float(plain)


def test_a_saved_classifier_is_a_judge(make: Make, folder: Path, tmp_path: Path) -> None:
    from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

    config = AutoConfig.from_pretrained(folder, num_labels=1, pad_token_id=0)
    whole = AutoModelForSequenceClassification.from_config(config).double().eval()
    whole.save_pretrained(tmp_path / "judge")
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path / "judge")
    engine = make("score", name="judge", path=tmp_path / "judge", weights="pretrained")
    texts = [("1+1=", "2"), ("12+34=", "46")]
    tokens = torch.tensor([[*engine.tokenize("1+1=2"), 0, 0, 0], engine.tokenize("12+34=46")])
    with torch.no_grad():
        expected = whole(input_ids=tokens, attention_mask=tokens != 0).logits[:, 0]
    torch.testing.assert_close(engine.scores(texts), expected, rtol=0, atol=1e-9)
