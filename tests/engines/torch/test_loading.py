import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from rlinf_graph.engines.torch.engine import TorchEngine
from rlinf_graph.ir.batches import Prompts
from rlinf_graph.ir.diagnostic import CompileError
from rlinf_graph.nodes.engine import Key, Sampling
from rlinf_graph.nodes.registry import engine_class
from tests.engines.torch.conftest import write_model

Make = Callable[..., TorchEngine]
Ask = Callable[..., Prompts]


def equal(a: TorchEngine, b: TorchEngine) -> bool:
    mine, others = a.weights(), b.weights()
    return set(mine) == set(others) and all(torch.equal(w, others[n]) for n, w in mine.items())


def test_it_is_the_engine_named_torch() -> None:
    assert engine_class("torch") is TorchEngine
    assert TorchEngine.capabilities.name == "torch"


@pytest.mark.parametrize("head", ["lm", "value", "score"])
def test_random_weights_depend_on_seed_and_name_only(make: Make, head: str) -> None:
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    first = make(head)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(6)
    assert equal(make(head), first)
    assert not equal(make(head, seed=1), first)
    assert not equal(make(head, name="other"), first)
    for name, value in make(head, dtype="float32").weights().items():
        assert torch.equal(value.double(), first.weights()[name])


def test_types(make: Make) -> None:
    assert make(dtype="auto").dtype == torch.float32
    engine = make("value", dtype="bfloat16")
    assert engine.model.head.weight.dtype == torch.float32
    assert {p.dtype for p in engine.model.backbone.parameters()} == {torch.bfloat16}
    assert engine.model.backbone.rotary_emb.inv_freq.dtype == torch.float32


@pytest.mark.parametrize("tied", [False, True])
def test_a_saved_model_is_one_of_transformers(
    make: Make, ask: Ask, tmp_path: Path, tied: bool
) -> None:
    engine = make(path=write_model(tmp_path / "from", tie_word_embeddings=tied))
    assert ("lm_head.weight" in engine.weights()) is not tied
    engine.save(tmp_path / "to")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "to", dtype=torch.float64)
    tokens = torch.tensor([[3, 4, 5, 6]])
    with torch.no_grad():
        assert torch.equal(again(tokens).logits, engine.model(tokens).logits)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "to")
    assert tokenizer("12+3=").input_ids == engine.tokenize("12+3=")
    loaded = make(path=tmp_path / "to", weights="pretrained")
    assert equal(loaded, engine)
    assert loaded.tokenize("a b c") == engine.tokenize("a b c")
    sampling, key = Sampling(samples=2, max_tokens=5), Key(0, "r", 0)
    made = [e.generate(ask("1+1="), sampling, key, 0) for e in (engine, loaded)]
    assert torch.equal(made[0].tokens, made[1].tokens)


@pytest.mark.parametrize("head", ["value", "score"])
def test_a_saved_head_is_loaded_again(make: Make, tmp_path: Path, head: str) -> None:
    engine = make(head)
    engine.update_weights([("head.weight", torch.rand(1, 32))])
    engine.save(tmp_path / "to")
    assert equal(make(head, path=tmp_path / "to", weights="pretrained"), engine)
    backbone = AutoModel.from_pretrained(tmp_path / "to", dtype=torch.float64)
    assert isinstance(backbone, type(engine.model.backbone))


def test_a_critic_begins_from_a_language_model(make: Make, tmp_path: Path) -> None:
    policy = make()
    policy.save(tmp_path / "to")
    critic = make("value", path=tmp_path / "to", weights="pretrained")
    weights = critic.weights()
    assert not weights["head.weight"].any()
    for name, value in policy.weights().items():
        if name != "lm_head.weight":
            assert torch.equal(weights[name.replace("model.", "backbone.", 1)], value)


def test_weights_are_copied_in_place(make: Make) -> None:
    engine, other = make(), make(seed=1)
    pointers = {n: w.data_ptr() for n, w in engine.weights().items()}
    engine.update_weights((n, w.float()) for n, w in other.weights().items())
    assert equal(engine, other)
    assert {n: w.data_ptr() for n, w in engine.weights().items()} == pointers


def test_tied_weights_may_come_under_either_name(make: Make, tmp_path: Path) -> None:
    engine = make(path=write_model(tmp_path / "from", tie_word_embeddings=True))
    new = torch.rand(20, 32, dtype=torch.float64)
    engine.update_weights([("lm_head.weight", new)])
    assert torch.equal(engine.weights()["model.embed_tokens.weight"], new)


def test_wrong_weights_are_refused(make: Make) -> None:
    engine = make()
    with pytest.raises(CompileError, match=r"RG0604.*no weight `lm_haed.weight`") as unknown:
        engine.update_weights([("lm_haed.weight", torch.zeros(20, 32))])
    assert "did you mean `lm_head.weight`?" in str(unknown.value)
    with pytest.raises(CompileError, match=r"RG0604.*has shape 20×32, not 21×32"):
        engine.update_weights([("lm_head.weight", torch.zeros(21, 32))])
    trained = make(trainable=True)
    state = trained.state()
    del state["weights"]["model.norm.weight"]
    with pytest.raises(CompileError, match=r"RG0604.*lack 1 of 27, such as `model.norm.weight`"):
        trained.load_state(state)


def refused(make: Make, path: Path | str, *, head: str = "lm", weights: str = "pretrained") -> str:
    with pytest.raises(CompileError) as caught:
        make(head, path=path, weights=weights)
    (diagnostic,) = caught.value.diagnostics
    assert diagnostic.code == "RG0503"
    assert diagnostic.help
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return diagnostic.render()


def test_missing_files_are_named(make: Make, folder: Path, tmp_path: Path) -> None:
    assert "there is no folder" in refused(make, tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    assert "has no config.json" in refused(make, tmp_path / "empty")
    assert 'weights="random"' in refused(make, folder)
    bare = write_model(tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    assert "has no tokenizer" in refused(make, bare, weights="random")


def test_unusable_files_are_explained(make: Make, tmp_path: Path) -> None:
    unknown = write_model(tmp_path / "unknown", "no_such_architecture")
    assert "no_such_architecture" in refused(make, unknown, weights="random")
    vision = write_model(tmp_path / "vision", "vit")
    assert "Unrecognized configuration class" in refused(make, vision, weights="random")
    broken = write_model(tmp_path / "broken")
    (broken / "config.json").write_text("{")
    assert "not a valid JSON file" in refused(make, broken, weights="random")
    cut = write_model(tmp_path / "cut")
    (cut / "model.safetensors").write_bytes(b"12345678")
    assert "SafetensorError" in refused(make, cut)


def test_a_checkpoint_of_another_model_is_refused(make: Make, tmp_path: Path) -> None:
    make().save(tmp_path / "to")
    assert "no weights for head `score`" in refused(make, tmp_path / "to", head="score")
    config = tmp_path / "to" / "config.json"
    settings = json.loads(config.read_text())
    config.write_text(json.dumps({**settings, "num_hidden_layers": 3, "layer_types": None}))
    assert "lacks 12 weights of Qwen2ForCausalLM" in refused(make, tmp_path / "to")
    config.write_text(json.dumps({**settings, "vocab_size": 21}))
    assert "RuntimeError" in refused(make, tmp_path / "to")


def test_an_unreachable_hub_is_explained(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("We couldn't connect to the hub\nand more lines")

    monkeypatch.setattr(AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(AutoTokenizer, "from_pretrained", unreachable)
    said = refused(make, "nobody/nothing")
    assert "OSError: We couldn't connect to the hub" in said
    assert "HF_TOKEN" in said


def test_a_device_that_is_not_there_is_refused(make: Make, folder: Path) -> None:
    definition = make().definition
    with pytest.raises(CompileError, match=r"RG0503.*is to run on cuda:99"):
        TorchEngine(definition, seed=0, device="cuda:99", dtype="auto", trainable=False)


def test_an_engine_for_inference_does_not_train(make: Make) -> None:
    with pytest.raises(CompileError, match="was loaded without `trainable`"):
        make().state()
    assert not any(p.requires_grad for p in make().model.parameters())


def test_a_critic_needs_no_tokenizer(make: Make, tmp_path: Path) -> None:
    path = write_model(tmp_path / "bare")
    (path / "tokenizer.json").unlink()
    engine = make("value", path=path)
    with pytest.raises(CompileError, match="has no tokenizer"):
        engine.tokenize("1")
    engine.save(tmp_path / "to")
