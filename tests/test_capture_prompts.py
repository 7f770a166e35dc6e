"""Prompts and models: text, chat, token ids; stable ids; what cannot be loaded is named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from capture_zoo import GATED, tokenizer, zoo
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, T5Config

from interp.capture import Prompts, capture, load_model, shipped, wrap
from interp.capture.prompts import SHIPPED


def test_text_files(tmp_path: Path) -> None:
    file = tmp_path / "some.txt"
    file.write_text("\ufeffw3 w4\n\n  w5 w6  \n", encoding="utf-8")
    prompts = Prompts.from_file(file)
    assert [p.text for p in prompts] == ["w3 w4", "w5 w6"]
    assert prompts.encode(zoo("llama")) == [[1, 3, 4], [1, 5, 6]]


def test_jsonl_files(tmp_path: Path) -> None:
    file = tmp_path / "some.jsonl"
    lines = [
        {"id": "a", "text": "w3", "label": 1},
        {"messages": [{"role": "user", "content": "w7"}]},
        {"id": 7, "token_ids": [5, 6]},
    ]
    file.write_text("\n".join(map(json.dumps, lines)))
    prompts = Prompts.from_file(file)
    assert prompts.ids[0] == "a"
    assert prompts.ids[2] == "7"
    assert prompts[0].meta == {"label": 1}
    assert prompts.encode(zoo("llama")) == [[1, 3], [1, 5, 7, 6], [5, 6]]
    file.write_text('{"text": "w3"}\n{"text": \n')
    with pytest.raises(ValueError, match=r"some\.jsonl, line 2: not JSON"):
        Prompts.from_file(file)


def test_ids_are_stable_and_unique() -> None:
    assert Prompts(["w3", "w4"]).ids == [Prompts(["w3"]).ids[0], Prompts(["w4"]).ids[0]]
    assert Prompts(["w3"]).ids == ["dfe2a25ef1f7"] or len(Prompts(["w3"]).ids[0]) == 12
    with pytest.raises(ValueError, match="prompts 0 and 2 have the same id"):
        Prompts(["w3", "w4", "w3"])
    with pytest.raises(ValueError, match="same id 'x'"):
        Prompts([{"id": "x", "text": "w3"}, {"id": "x", "text": "w4"}])
    assert (Prompts(["w3"]) + Prompts(["w4"])).ids == Prompts(["w3", "w4"]).ids


def test_chats_have_one_bos_and_a_place_to_answer() -> None:
    model = zoo("llama")
    chat = [{"role": "user", "content": "w9"}]
    answered = [*chat, {"role": "assistant", "content": "w10"}]
    ids = Prompts([{"messages": chat}, {"messages": answered}]).encode(model)
    assert ids == [[1, 5, 9, 6], [1, 5, 9, 6, 10]]  # <s> only once, although the tokenizer adds one, too
    system = Prompts(["w9", {"messages": chat, "id": "b"}], system="w20").encode(model)
    assert system == [[1, 4, 20, 5, 9, 6]] * 2
    assert Prompts(["<s> w9"]).encode(model) == [[1, 9]]  # text that brings its own
    with pytest.raises(ValueError, match=r"refused roles \['tool'\].*no tools here"):
        Prompts([{"messages": [{"role": "tool", "content": "w3"}]}]).encode(model)


@pytest.mark.parametrize(
    ("items", "message"),
    [
        ([], "no prompts"),
        (["w3", " "], "prompt 1 is empty"),
        ([{"token_ids": []}], "prompt 0 is empty"),
        ([{"messages": []}], "prompt 0 is empty"),
        ([{"id": "x"}], "exactly one of"),
        ([{"text": "w3", "token_ids": [3]}], "exactly one of"),
        ([{"messages": [{"content": "w3"}]}], "needs 'role' and 'content'"),
        ([5], "got int"),
    ],
)
def test_bad_prompts(items: list, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Prompts(items)


def test_prompts_that_do_not_fit_the_model() -> None:
    with pytest.raises(ValueError, match="'long' is too long: 65 tokens, but the context of llama is 64"):
        Prompts([{"id": "long", "token_ids": [3] * 65}]).encode(zoo("llama"))
    with pytest.raises(ValueError, match=r"'x' has token id 96: expected 0 … 95"):
        Prompts([{"id": "x", "token_ids": [96]}]).encode(zoo("llama"))
    with pytest.raises(TypeError, match="a list of prompts"):
        Prompts("w3")
    model = wrap(zoo("llama").hf, type("T", (), {"chat_template": None, "bos_token_id": None})())
    with pytest.raises(ValueError, match="no chat template"):
        Prompts([{"messages": [{"role": "user", "content": "w3"}]}]).encode(model)


def test_a_prompt_of_no_tokens_is_named() -> None:
    class Silent:
        chat_template = bos_token_id = None

        def __call__(self, text: str, **options: object) -> dict[str, list[int]]:
            return {"input_ids": []}

    with pytest.raises(ValueError, match="prompt 'x' is empty: it has no tokens"):
        Prompts([{"id": "x", "text": "\u200b"}]).encode(wrap(zoo("llama").hf, Silent()))


def test_prompts_are_a_sequence() -> None:
    found = Prompts(["w3", {"id": "b", "text": "w4"}, "w5"])
    assert repr(found) == "<Prompts: 3>"
    assert found.index("b") == found.index(found[1]) == 1
    with pytest.raises(ValueError, match="not in list"):
        found.index(found[1], 2)


def test_missing_and_empty_files(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        Prompts.from_file(tmp_path / "none.txt")
    (tmp_path / "empty.txt").write_text("\n \n")
    with pytest.raises(ValueError, match=r"empty\.txt is empty"):
        Prompts.from_file(tmp_path / "empty.txt")
    with pytest.raises(FileNotFoundError, match="no shipped prompts"):
        shipped("nothing")


def test_shipped_prompts() -> None:
    assert {name: len(shipped(name)) for name in SHIPPED} == {
        "uncertainty": 8,
        "commitment": 4,
        "cognitive": 4,
        "sycophancy": 4,
        "tier3_uncertainty": 2,
        "tier3_cognitive": 2,
    }
    everything = [p for name in SHIPPED for p in shipped(name)]
    assert len({p.id for p in everything}) == len(everything) == 24


# ------------------------------------------------------------------------------------- models


def save_llama(folder: Path, **extra: object) -> Path:
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**{**GATED, **extra})).save_pretrained(folder)
    tokenizer().save_pretrained(folder)
    return folder


def test_load_model_from_a_folder(tmp_path: Path) -> None:
    model = load_model(save_llama(tmp_path / "m"), device="cpu")
    assert (model.n_layers, model.width, model.context, model.kind) == (3, 32, 64, "causal")
    assert (model.n_heads, model.n_kv_heads, model.head_dim) == (4, 2, 8)
    assert model.dtype == torch.float32
    assert (model.attention, model.eos_ids, model.pad_id) == ("sdpa", (2,), 0)
    assert model.load_seconds > 0
    assert "context 64" in repr(model)
    assert "sdpa" in repr(model)
    assert load_model(str(tmp_path / "m"), "bf16", "cpu").dtype == torch.bfloat16
    assert load_model(tmp_path / "m", torch.float64, "cpu", attention="eager").attention == "eager"
    acts = capture(model, ["w3 w4", "w5"], max_new_tokens=3)
    assert acts.meta["model"]["name"] == str(tmp_path / "m")
    assert acts.tokens(0)[:3] == ["<s>", "w3", "w4"]
    with pytest.raises(ValueError, match="unknown dtype 'float3'"):
        load_model(tmp_path / "m", "float3")


def test_load_an_encoder(tmp_path: Path) -> None:
    config = BertConfig(
        vocab_size=96, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=48
    )
    BertModel(config).save_pretrained(tmp_path)
    tokenizer().save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert model.kind == "encoder"
    assert max(capture(model, ["w3 w4 w5", "w6"], check=2).check.values()) < 1e-5


def test_models_that_cannot_be_loaded(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_model(tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"no config\.json"):
        load_model(tmp_path)
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError, match="is a file"):
        load_model(tmp_path / "file")
    with pytest.raises(FileNotFoundError, match="no model 'nobody-here/nothing'"):
        load_model("nobody-here/nothing")
    T5Config(d_model=32, num_layers=1).save_pretrained(tmp_path / "t5")
    with pytest.raises(ValueError, match="encoder-decoder"):
        load_model(tmp_path / "t5")


def test_what_a_model_needs_and_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import builtins

    from transformers import LlamaConfig, LlamaForCausalLM

    real = builtins.__import__

    def without_accelerate(name: str, *args: object, **kwargs: object) -> object:
        if name == "accelerate":
            raise ImportError(name)
        return real(name, *args, **kwargs)  # type: ignore[arg-type]

    LlamaForCausalLM(LlamaConfig(**GATED)).save_pretrained(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(builtins, "__import__", without_accelerate)
        with pytest.raises(ImportError, match="pip install accelerate"):
            load_model(tmp_path, device_map="auto")

    def cut_off(*args: object, **kwargs: object) -> object:
        raise ConnectionError("the hub went away")

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", cut_off)
    with pytest.raises(ConnectionError, match="went away"):  # not a word about pickles
        load_model(tmp_path)


def test_soft_capped_attention_is_eager(tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    Gemma2ForCausalLM(Gemma2Config(**GATED)).save_pretrained(tmp_path)
    model = load_model(tmp_path, device="cpu")
    assert model.attention == "eager"
    assert "caps" in model.attention_reason


@pytest.mark.parametrize("name", ["tiny"])
def test_the_shipped_model(name: str) -> None:
    from interp import tiny

    if not (tiny.path() / "config.json").exists():
        pytest.skip("the shipped model is not trained yet")
    acts = capture(load_model(name, device="cpu"), shipped("uncertainty"), tier=2, check=8, max_new_tokens=5)
    assert max(acts.check.values()) < 1e-5
