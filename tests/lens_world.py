"""A small world for the lens tests: a random Llama over words, and a pack of three levels."""

from __future__ import annotations

import itertools

import numpy as np
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from interp.capture.model import Model, wrap
from interp.lens.concepts import ConceptPack

LEAVES = {
    "bird": "robin sparrow finch lark thrush wren",
    "fish": "trout salmon bass perch carp cod",
    "insect": "ant bee beetle cricket moth wasp",
    "car": "truck bus van taxi tank sedan",
    "boat": "ship canoe ferry raft yacht barge",
    "plane": "jet helicopter glider balloon rocket kite",
}
PARENTS = {
    "bird": "animal",
    "fish": "animal",
    "insect": "animal",
    "car": "vehicle",
    "boat": "vehicle",
    "plane": "vehicle",
}
SUBJECTS = ["boy", "girl", "king", "cook"]
VERBS = ["saw", "likes", "drew", "found", "wants", "lost"]
PLACES = ["park", "town", "hall", "yard", "garden", "station"]


def sentences(leaf: str, n: int, seed: int = 0) -> list[str]:
    every = [
        f"the {who} {verb} a {thing} near the {place}"
        for who, verb, thing, place in itertools.product(SUBJECTS, VERBS, LEAVES[leaf].split(), PLACES)
    ]
    rng = np.random.default_rng([seed, sorted(LEAVES).index(leaf)])
    return [every[i] for i in rng.choice(len(every), n, replace=False)]


def pack(n: int = 60, seed: int = 0) -> ConceptPack:
    """Six leaves of `n` examples each, two parents, one root above them."""
    concepts = [concept("thing", [], 0), concept("animal", ["thing"], 1), concept("vehicle", ["thing"], 1)]
    concepts += [concept(leaf, [PARENTS[leaf]], 2, sentences(leaf, n, seed)) for leaf in LEAVES]
    return ConceptPack.from_dict({"name": "world", "version": "1", "concepts": concepts})


def concept(id: str, parents: list[str], level: int, positive: list = (), negative: list = ()) -> dict:
    return {
        "id": id,
        "term": f"<{id}>",
        "definition": "",
        "parents": parents,
        "level": level,
        "examples": {"positive": list(positive), "negative": list(negative)},
    }


def tokenizer() -> PreTrainedTokenizerFast:
    words = sorted(
        {
            *" ".join([*LEAVES.values(), *SUBJECTS, *VERBS, *PLACES]).split(),
            *[
                "the",
                "a",
                "near",
                "Note",
                "She",
                "said",
                "This",
                "is",
                "true",
                "He",
                "wrote",
                "this",
                "Read",
                ":",
                ".",
            ],
        }
    )
    vocab = {w: i for i, w in enumerate(["<pad>", "<s>", "</s>", "<unk>", *words])}
    backend = Tokenizer(WordLevel(vocab, unk_token="<unk>"))
    backend.pre_tokenizer = Whitespace()
    backend.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    special = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=backend, **special)


def encoder(width: int = 48) -> Model:
    """A random BERT over the same words."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tokenizer()),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    hf = BertModel(config)
    hf.embeddings.word_embeddings.weight.data *= 8
    return wrap(hf, tokenizer(), name="encoder")


def model(seed: int = 0, width: int = 48, dtype: torch.dtype = torch.float32) -> Model:
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(seed)
    hf = LlamaForCausalLM(config)
    # What a token is should weigh more than what stands before it, as in a trained model.
    hf.model.embed_tokens.weight.data *= 8
    hf = hf.to(dtype)
    return wrap(hf, words, name="world")
