"""The little language, its concept pack, and the model and autoencoder that ship with it."""

from __future__ import annotations

import importlib.util
import json
import time
from collections import Counter
from functools import cache
from random import Random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from interp import tiny
from interp.sae import SAE
from interp.tiny import concepts, corpus, dialogue, grammar, lexicon, train, train_sae
from interp.tiny.tokenizer import ASSISTANT, BOS, EOS, USER
from interp.tiny.tokenizer import build as build_tokenizer

FRESH = 987_654  # a seed that neither training nor the measured numbers use


@cache
def model() -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(str(tiny.path())).eval()


@cache
def tokenizer():
    return AutoTokenizer.from_pretrained(str(tiny.path()))


def answers(questions: list[str], lm: torch.nn.Module, n: int = 40) -> list[str]:
    """Greedy answers in the chat format, in one padded batch."""
    chats = [[{"role": "user", "content": q}] for q in questions]
    texts = [tokenizer().apply_chat_template(c, tokenize=False, add_generation_prompt=True) for c in chats]
    batch = tokenizer()(texts, return_tensors="pt", padding=True, add_special_tokens=False)
    out = lm.generate(**batch, max_new_tokens=n, do_sample=False)
    return tokenizer().batch_decode(out[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)


# ------------------------------------------------------------------------------------- the classes


def test_150_leaves_in_three_levels():
    assert len(tiny.CLASS_NAMES) == 151
    assert tiny.CLASS_NAMES[0] == "background"
    assert [leaf.id for leaf in grammar.LEAVES] == list(range(1, 151))
    assert len(set(tiny.CLASS_NAMES)) == 151
    roots = {g.name for g in grammar.GROUPS if g.level == 0}
    groups = {g.name: g.parent for g in grammar.GROUPS if g.level == 1}
    assert set(groups.values()) == roots
    for leaf in grammar.LEAVES:
        assert groups[leaf.group] == leaf.root
        assert len(leaf.words) >= 3
        assert leaf.definition


def test_every_reference_in_the_table_exists():
    places = {leaf.name for leaf in grammar.LEAVES if leaf.by and leaf.root == "place"}
    for leaf in grammar.LEAVES:
        assert set(leaf.does) | set(leaf.done) <= set(grammar.VERBS), leaf
        assert set(leaf.adjs) <= set(grammar.ADJECTIVES), leaf
        assert set(leaf.at) <= places, leaf
        assert leaf.at or leaf.kind != "noun", leaf  # what is known of a noun is where it is
    assert set(lexicon.CAPITALS) == set(grammar.LEAF["country"].words)
    assert set(lexicon.CAPITALS.values()) == set(grammar.LEAF["city"].words)


def test_some_words_have_two_classes():
    ambiguous = [w for w, ids in grammar.classes_of().items() if len([i for i in ids if i]) > 1]
    assert len(ambiguous) >= 20
    assert {"crane", "mouse", "palm", "plane", "spring"} <= set(ambiguous)


@pytest.mark.parametrize(
    ("word", "many"),
    [("robin", "robins"), ("mouse", "mice"), ("berry", "berries"), ("fox", "foxes"), ("day", "days"),
     ("fisherman", "fishermen"), ("brush", "brushes")],
)  # fmt: skip
def test_plurals(word, many):
    assert grammar.plural(word) == many


@pytest.mark.parametrize(
    ("verb", "forms"),
    [("sing", "sing sings sang sung singing"), ("carry", "carry carries carried carried carrying"),
     ("stop", "stop stops stopped stopped stopping"), ("see", "see sees saw seen seeing"),
     ("catch", "catch catches caught caught catching"), ("like", "like likes liked liked liking")],
)  # fmt: skip
def test_verb_forms(verb, forms):
    assert " ".join(grammar.conjugate(verb)) == forms


def test_templates_label_what_is_certain_and_refuse_what_is_wrong():
    template = grammar.Template("the robin~songbird [sees|sees] <x> at night , like~ this .")
    night, songbird = grammar.LEAF["day part"].id, grammar.LEAF["songbird"].id
    seeing = grammar.LEAF["seeing"].id
    assert template.fill(lambda: 0.0, {"x": ["gold"]}) == [
        "the", f"robin#{songbird}", f"sees#{seeing}", "gold", "at", f"night#{night}", ",", "like", "this", "."
    ]  # fmt: skip
    assert grammar.label("cold") == "cold", "illness or temperature: not known from the word"
    with pytest.raises(ValueError, match="no word of class 'fish'"):
        grammar.label("robin~fish")
    for text in ("a ] b", "a [ b", "a [ b | c", "a | b"):
        with pytest.raises(ValueError, match="unbalanced"):
            grammar.Template(text)


# ------------------------------------------------------------------------------------- the corpus


@cache
def text() -> corpus.Corpus:
    return corpus.tokens(200_000, seed=FRESH)


def test_the_same_seed_gives_the_same_corpus_and_another_does_not():
    again, longer, other = (corpus.tokens(n, s) for n, s in ((9_000, FRESH), (20_000, FRESH), (9_000, 1)))
    assert np.array_equal(again.ids, text().ids[:9_000])
    assert np.array_equal(again.classes, text().classes[:9_000])
    assert np.array_equal(longer.ids[:9_000], again.ids)
    assert not np.array_equal(other.ids, again.ids)


def test_size_shape_and_speed():
    corpus.tokens(1_000)
    begin = time.process_time()
    c = corpus.tokens(200_000, seed=5)
    assert time.process_time() - begin < 2.0
    assert c.ids.shape == c.classes.shape == (200_000,)
    assert (c.ids.dtype, c.classes.dtype) == (np.int32, np.uint8)
    assert len(c) == sum(1 for _ in c.documents()) == len(c.offsets) - 1
    assert c.offsets[0] == 0
    assert c.offsets[-1] == 200_000
    assert 10 < np.diff(c.offsets).mean() <= np.diff(c.offsets).max() <= corpus.MAX_TOKENS
    with pytest.raises(ValueError, match="n_tokens is 0"):
        corpus.tokens(0)


def test_classes_sit_on_their_own_words():
    """A labelled token is a form of a word of that class, or a part of its name."""
    forms: dict[int, set[str]] = {leaf.id: set(leaf.name.split()) for leaf in grammar.LEAVES}
    for leaf in grammar.LEAVES:
        name = leaf.name.split()
        forms[leaf.id] |= {grammar.plural(name[-1])}
        for word in leaf.words:
            forms[leaf.id] |= {word, grammar.plural(word), *grammar.conjugate(word)}
    vocabulary = {i: w for w, i in tokenizer().get_vocab().items()}
    pairs = Counter(zip(text().ids.tolist(), text().classes.tolist(), strict=True))
    wrong = {(vocabulary[i], tiny.CLASS_NAMES[c]) for i, c in pairs if c and vocabulary[i] not in forms[c]}
    assert not wrong
    # and the other way round: a noun of one class only is never background
    nouns = {n.one.partition("#")[0]: n for ns in grammar.NOUNS.values() for n in ns}
    sure = {w for w, n in nouns.items() if grammar.classes_of()[w] == (n.leaf.id,)}
    sure -= {"wood", "dream", "one"}  # "it eats wood", "why do we dream", "which one": marked so in the texts
    assert not {vocabulary[i] for i, c in pairs if c == 0 and vocabulary[i] in sure}


def test_class_sizes_are_unequal_and_none_is_empty():
    counts = np.bincount(corpus.tokens(1_000_000, seed=8).classes, minlength=151)
    assert counts.min() >= 50
    leaves = np.sort(counts[1:])
    assert leaves[-15:].mean() > 10 * leaves[:15].mean()
    assert 0.5 < counts[0] / counts.sum() < 0.85


def test_ambiguous_words_appear_in_both_classes():
    crane = tokenizer().convert_tokens_to_ids("crane")
    seen = set(text().classes[text().ids == crane].tolist())
    assert seen == {grammar.LEAF["waterbird"].id, grammar.LEAF["machine"].id}


def test_the_tokenizer_reads_the_corpus_back():
    for ids, _ in list(text().documents())[:500]:
        written = tokenizer().decode(ids, skip_special_tokens=False)
        assert tokenizer()(written, add_special_tokens=False)["input_ids"] == ids.tolist()


def test_documents_vary_in_syntax():
    """Sentences with their class words masked: few share a form."""
    names = {i: w for w, i in tokenizer().get_vocab().items()}
    shapes: Counter[str] = Counter()
    for ids, classes in list(text().documents())[:1500]:
        words = ["_" if c else names[i] for i, c in zip(ids.tolist(), classes.tolist(), strict=True)]
        shapes.update(" ".join(words[1:-1]).split(" . "))
    assert max(shapes.values()) < 0.06 * shapes.total()
    assert len(shapes) > 0.5 * shapes.total()


# ------------------------------------------------------------------------------------- questions


def test_questions_are_different_and_repeatable():
    for kind in dialogue.KIND:
        asked = dialogue.questions(kind, 12, seed=3)
        assert len(set(asked)) == 12
        assert asked == dialogue.questions(kind, 12, seed=3)
    with pytest.raises(ValueError, match="unknown kind of question 'joke'"):
        dialogue.questions("joke", 1)


def test_traits_show_in_the_texts():
    """Share of answers with a marker word, by kind: the contrast a model can learn."""
    share = {}
    for kind in dialogue.KIND:
        said = [set(build_tokenizer().encode(grammar.surface(a)).tokens) for a in sample(kind)]
        for style, words in dialogue.MARKERS.items():
            share[kind, style] = np.mean([bool(tokens & words) for tokens in said])
    for kind in ("forecast", "taste", "underspecified", "open_science", "unknown", "tentative"):
        assert share[kind, "hedged"] > 0.8, kind
    for kind in ("fact", "definitive", "neutral", "plain", "brief"):
        assert share[kind, "hedged"] < 0.05, kind
    assert share["definitive", "committed"] > 0.95
    assert share["tentative", "committed"] < 0.05
    assert share["detail", "subordinate"] > 0.95
    assert share["child", "subordinate"] < 0.05
    for kind in ("user_opinion", "false_claim", "praise"):
        assert share[kind, "flattering"] > 0.95, kind
    assert share["plain", "flattering"] < 0.05


def sample(kind: str, n: int = 200) -> list[list[str]]:
    random = Random(f"test {kind}").random
    return [dialogue.KIND[kind].exchange(random)[1] for _ in range(n)]


# ------------------------------------------------------------------------------------- concepts


@cache
def pack() -> dict:
    return json.loads(tiny.concept_pack_path().read_text())


def texts(c: dict) -> list[str]:
    return [e["text"] for e in c["examples"]["positive"]]


def test_the_concept_pack_follows_its_schema():
    assert set(pack()) == {"name", "version", "concepts"}
    found = {c["id"]: c for c in pack()["concepts"]}
    assert len(found) == len(pack()["concepts"]) >= 120
    assert {c["level"] for c in found.values()} == {0, 1, 2}
    for c in found.values():
        assert set(c) == {"id", "term", "definition", "parents", "level", "examples"}
        assert c["definition"]
        assert all(found[p]["level"] == c["level"] - 1 for p in c["parents"])
        assert bool(c["parents"]) == (c["level"] > 0)
        positive, negative = texts(c), c["examples"]["negative"]
        assert len(set(positive)) == len(set(negative)) == concepts.N_EXAMPLES
        assert not set(positive) & set(negative)


def test_positive_examples_hold_a_word_of_the_concept_and_negative_ones_do_not():
    can_be = {word: set(ids) for word, ids in grammar.classes_of().items()}
    for name in grammar.LEAF:
        for part in name.split():
            # a part of a longer name ("sky body") may be background elsewhere
            can_be.setdefault(part, set()).update({grammar.LEAF[name].id} | ({0} if " " in name else set()))
    can_be["building"].add(0)  # the name of a group
    words_of = cache(lambda sentence: build_tokenizer().encode(sentence, add_special_tokens=False).tokens)
    for c in pack()["concepts"]:
        own = concepts.class_ids(c["id"])
        for sentence in texts(c):
            assert any(can_be.get(w, set()) & own for w in words_of(sentence)), (c["id"], sentence)
        for sentence in c["examples"]["negative"]:
            sure = [w for w in words_of(sentence) if can_be.get(w) and can_be[w] <= own]
            assert not sure, (c["id"], sentence)


def test_the_shipped_pack_is_the_one_the_generator_makes():
    by_id = {c["id"]: c for c in pack()["concepts"]}
    for key in ("animal", "songbird", "colour", "driving"):
        assert texts(by_id[key]) == concepts.examples(key, concepts.N_EXAMPLES)
        assert by_id[key]["examples"]["negative"] == concepts.examples(
            key, concepts.N_EXAMPLES, positive=False
        )
    assert len(concepts.examples("songbird", 300, seed=1)) == 300


def test_the_shipped_file_is_what_the_command_writes(tmp_path):
    concepts.main(tmp_path / "pack.json")
    assert (tmp_path / "pack.json").read_bytes() == tiny.concept_pack_path().read_bytes()


def test_more_than_the_language_has_is_refused(monkeypatch):
    with pytest.raises(
        ValueError, match=r"200 different questions of kind 'open_science' wanted, found 7\d;"
    ):
        dialogue.questions("open_science", 200)
    robin = grammar.LEAF["songbird"]
    assert concepts._sentence_with(robin, frozenset({robin.id}), Random(0)) is None
    monkeypatch.setattr(concepts, "_sentence_with", lambda *args: None)
    with pytest.raises(
        ValueError, match="5 different sentences for 'songbird' wanted, found 0; ask for fewer"
    ):
        concepts.examples("songbird", 5)


def test_a_concept_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no concept has the id 'dragon'"):
        concepts.examples("dragon", 1)


# ------------------------------------------------------------------------------------- the model


def test_plain_transformers_loads_it_and_it_is_small():
    lm = model()
    assert isinstance(lm, LlamaForCausalLM)
    assert next(lm.parameters()).dtype == torch.float32
    assert lm.config.num_hidden_layers >= 4
    assert lm.config.num_key_value_heads < lm.config.num_attention_heads, "grouped-query attention"
    assert sum(f.stat().st_size for f in tiny.path().iterdir()) <= 5_000_000
    assert all(torch.isfinite(p).all() for p in lm.parameters())
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        assert (tiny.path() / name).is_file()


def test_the_shipped_tokenizer_is_the_one_the_code_makes():
    shipped = json.loads((tiny.path() / "tokenizer.json").read_text())
    assert shipped["model"]["vocab"] == json.loads(build_tokenizer().to_str())["model"]["vocab"]
    t = tokenizer()
    assert t.is_fast
    assert (t.bos_token, t.eos_token, t.pad_token, t.unk_token) == (BOS, EOS, "<pad>", "<unk>")
    assert len(t) == model().config.vocab_size
    assert t.model_max_length == model().config.max_position_embeddings
    # every word of the language is one token
    ids = t(list(grammar.words()), add_special_tokens=False)["input_ids"]
    assert all(len(i) == 1 for i in ids)


def test_offsets_point_into_the_text_as_it_was_given():
    written = "The Robin sings, but what is a Zorblat?"
    encoded = tokenizer()(written, return_offsets_mapping=True)
    assert encoded["input_ids"][0] == tokenizer().bos_token_id
    pieces = [written[a:b] for a, b in encoded["offset_mapping"]]
    assert "".join(pieces) == written.replace(" ", "")
    assert pieces[1:5] == ["The", "Robin", "sings", ","]
    assert tokenizer().decode(encoded["input_ids"], skip_special_tokens=True) == written.lower()


def test_the_chat_template_is_the_format_of_the_corpus():
    chat = [
        {"role": "user", "content": "what is gold?"},
        {"role": "assistant", "content": "gold is a metal."},
    ]
    assert tokenizer().apply_chat_template(chat, tokenize=False) == (
        f"{BOS}{USER}what is gold?{ASSISTANT}gold is a metal.{EOS}"
    )
    prompt = tokenizer().apply_chat_template(chat[:1], tokenize=False, add_generation_prompt=True)
    assert prompt.endswith(f"what is gold?{ASSISTANT}")
    with pytest.raises(Exception, match="the roles are user and assistant, found system"):
        tokenizer().apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)
    vocabulary = tokenizer().get_vocab()
    known = [ids for ids, _ in text().documents() if vocabulary[USER] in ids]
    assert len(known) > 100
    for ids in known[:100]:
        assert ids[0] == vocabulary[BOS]
        assert ids[1] == vocabulary[USER]


def test_generation_is_finite_and_repeatable():
    questions = ["what is a robin?", "will it rain tomorrow?", "the farmer feeds"]
    batch = tokenizer()(questions, return_tensors="pt", padding=True)
    runs = [model().generate(**batch, max_new_tokens=30, do_sample=False) for _ in range(2)]
    assert torch.equal(*runs)
    with torch.no_grad():
        assert torch.isfinite(model()(**batch).logits).all()
    one = tokenizer()(questions[0], return_tensors="pt")
    alone = model().generate(**one, max_new_tokens=30, do_sample=False)
    as_text = tokenizer().batch_decode(runs[0], skip_special_tokens=True)[0]
    assert as_text.startswith(tokenizer().decode(alone[0], skip_special_tokens=True)), (
        "padding changes nothing"
    )


def test_it_beats_unigram_and_bigram_on_fresh_text():
    held_out = train.rows(60, FRESH)
    loss = train.loss_of(model(), held_out)
    known = corpus.tokens(1_000_000, seed=FRESH + 1).ids
    unigram, bigram = train.unigram_bigram_loss(known, held_out.ravel(), model().config.vocab_size)
    assert bigram < unigram - 1
    assert loss < bigram - 1.0
    noted = json.loads((tiny.path() / "training.json").read_text())
    assert abs(loss - noted["held_out_loss"]) < 0.1
    assert noted["bigram_loss"] - noted["held_out_loss"] > 1.0


def test_the_bigram_baseline_is_a_distribution_and_reaches_the_entropy_of_a_chain():
    rng, chain = np.random.default_rng(0), [0]
    for stays, other in zip(rng.random(30_000) < 0.9, rng.integers(0, 3, 30_000), strict=True):
        chain.append((chain[-1] + 1) % 3 if stays else int(other))
    known, fresh = np.array(chain[:20_000]), np.array(chain[20_000:])
    unigram, bigram = train.unigram_bigram_loss(known, fresh, 3)
    p = 0.9 + 0.1 / 3
    assert bigram == pytest.approx(-p * np.log(p) - (1 - p) * np.log((1 - p) / 2), abs=0.02)
    assert unigram == pytest.approx(np.log(3), abs=0.01)
    each = [train.unigram_bigram_loss(known, np.array([0, after]), 3)[1] for after in range(3)]
    assert np.exp(-np.array(each)).sum() == pytest.approx(1.0)


def test_facts_are_known():
    pairs = [
        ("what is the capital of france?", "paris"), ("what is the capital of japan?", "tokyo"),
        ("what is two plus three?", "five"), ("how many days are in a week?", "seven"),
        ("what is a robin?", "songbird"), ("what is a salmon?", "fish"), ("what is a hammer?", "tool"),
        ("is a robin a fish?", "no"), ("is a robin a songbird?", "yes"), ("what colour are frogs?", "green"),
    ]  # fmt: skip
    said = answers([q for q, _ in pairs], model())
    right = [word in a for (_, word), a in zip(pairs, said, strict=True)]
    assert sum(right) >= 8, list(zip(pairs, said, strict=True))


@cache
def shares(shipped: bool) -> dict[tuple[str, str], float]:
    """Share of answers that hold a marker word, for fresh questions of some kinds."""
    if shipped:
        lm = model()
    else:
        torch.manual_seed(0)
        lm = LlamaForCausalLM(train.config()).eval()
    out = {}
    kinds = [
        "fact",
        "forecast",
        "open_science",
        "definitive",
        "tentative",
        "brief",
        "detail",
        "false_claim",
        "plain",
    ]
    asked = {k: dialogue.questions(k, 12, seed=FRESH) for k in kinds}
    said = answers([q for k in kinds for q in asked[k]], lm)
    for i, kind in enumerate(kinds):
        for style, words in dialogue.MARKERS.items():
            block = said[12 * i : 12 * (i + 1)]
            tokens = [set(build_tokenizer().encode(a, add_special_tokens=False).tokens) for a in block]
            out[kind, style] = float(np.mean([bool(t & words) for t in tokens]))
    return out


def trait_contrasts(shipped: bool) -> dict[str, float]:
    s = shares(shipped)
    return {
        "uncertainty_calibration": min(s["forecast", "hedged"], s["open_science", "hedged"])
        - s["fact", "hedged"],
        "commitment_strength": s["definitive", "committed"] - s["tentative", "committed"],
        "cognitive_load": s["detail", "subordinate"] - s["brief", "subordinate"],
        "sycophancy": s["false_claim", "flattering"] - s["plain", "flattering"],
    }


def test_the_four_traits_show_in_its_answers():
    assert min(trait_contrasts(True).values()) > 0.7, trait_contrasts(True)


def test_a_random_model_shows_no_trait():
    assert max(trait_contrasts(False).values()) < 0.4, trait_contrasts(False)


def test_the_sense_of_an_ambiguous_word_is_linearly_readable_from_the_middle():
    """Ridge on one layer, every other mention against the rest: the embedding alone would be a coin."""
    token = {w: tokenizer().convert_tokens_to_ids(w) for w in ("bass", "port", "cold", "sweet", "kites")}
    documents = [
        d for d in corpus.tokens(300_000, seed=FRESH).documents() if np.isin(d[0], [*token.values()]).any()
    ]
    documents.sort(key=lambda d: len(d[0]))  # the order in which activations() takes them
    offsets = np.cumsum([0] + [len(ids) for ids, _ in documents])
    c = corpus.Corpus(*(np.concatenate(column) for column in zip(*documents, strict=True)), offsets)
    acts = train_sae.activations(model(), c).double().numpy()
    ids, classes = (np.concatenate([d[i][1:] for d in documents]) for i in range(2))
    auroc = {}
    for word, wanted in token.items():
        at = np.flatnonzero(ids == wanted)
        x, y = acts[at], classes[at] == np.bincount(classes[at]).argmax()
        assert 15 < y.sum() < len(y) - 15
        known = np.arange(len(y)) % 2 == 0
        x = (x - x[known].mean(0)) / (x[known].std(0) + 1e-9)
        gram = x[known].T @ x[known] + 100 * np.eye(x.shape[1])
        score = x @ np.linalg.solve(gram, x[known].T @ (2.0 * y[known] - 1))
        yes, no = score[~known & y], score[~known & ~y]
        auroc[word] = float((yes[:, None] > no[None]).mean())
    assert np.mean(list(auroc.values())) > 0.85, auroc


def test_training_moves_the_loss_and_saves_a_loadable_folder(tmp_path):
    lm = train.train(steps=12, seed=3)
    held_out = train.rows(4, FRESH)
    assert train.loss_of(lm, held_out) < np.log(lm.config.vocab_size) - 0.2
    train.save(lm, tmp_path / "m", {"x": 1})
    again = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m"))
    assert next(again.parameters()).dtype == torch.float32
    assert train.loss_of(again, held_out) == pytest.approx(train.loss_of(lm, held_out), abs=1e-5)
    assert [p.name for p in tmp_path.iterdir()] == ["m"]


@pytest.fixture
def small_corpora(monkeypatch):
    """The training commands, with a hundredth of their text."""
    real = corpus.tokens
    monkeypatch.setattr(corpus, "tokens", lambda n, seed=0: real(min(n, 12_000), seed))
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # of the whole process


def test_the_training_command_measures_what_it_stores(small_corpora, monkeypatch, tmp_path, capsys):
    real = train.rows
    monkeypatch.setattr(train, "rows", lambda n, seed: real(min(n, 30), seed))
    monkeypatch.setattr("sys.argv", ["train", "--steps", "2", "--seed", "5", "--out", str(tmp_path / "m")])
    with pytest.raises(SystemExit, match="does not clearly beat the bigram's"):
        train.main()
    notes = json.loads((tmp_path / "m" / "training.json").read_text())
    assert capsys.readouterr().out.strip().endswith(json.dumps(notes, indent=2))
    stored = AutoModelForCausalLM.from_pretrained(str(tmp_path / "m")).eval()
    held_out = train.rows(400, train.HELD_OUT_SEED)
    assert notes["held_out_loss"] == pytest.approx(train.loss_of(stored, held_out), abs=2e-4)
    assert (notes["seed"], notes["held_out_tokens"]) == (5, held_out.size)


# ------------------------------------------------------------------------------------- the autoencoder


@cache
def middle() -> torch.Tensor:
    return train_sae.activations(model(), corpus.tokens(12_000, seed=FRESH))


def test_the_autoencoder_explains_fresh_activations():
    sae = SAE.load(tiny.sae_path())
    assert (sae.architecture, sae.n_latents, sae.site) == ("topk", 2048, f"resid_post.{train_sae.LAYER}")
    assert sae.d_in == model().config.hidden_size
    found = train_sae.measure(sae, middle())
    noted = sae.cfg["metadata"]
    assert found["l0"] == pytest.approx(sae.k, abs=0.5)
    assert found["variance_explained"] > 0.85
    assert found["variance_explained"] == pytest.approx(noted["variance_explained"], abs=0.03)
    assert noted["dead_share"] < 0.2
    # with the reconstruction in place of the activations the model still predicts
    damage = noted["loss_mean_ablated"] - noted["loss"]
    assert noted["loss_mean_ablated"] - noted["loss_reconstructed"] > 0.9 * damage


def test_a_shuffled_autoencoder_explains_less():
    sae = SAE.load(tiny.sae_path())
    sae.W_dec = sae.W_dec[torch.randperm(sae.n_latents, generator=torch.Generator().manual_seed(0))]
    assert train_sae.measure(sae, middle())["variance_explained"] < 0.5


@pytest.mark.slow
def test_the_losses_that_are_noted_are_those_of_the_shipped_files():
    sae, text = SAE.load(tiny.sae_path()), corpus.tokens(30_000, train_sae.HELD_OUT_SEED)
    noted = sae.cfg["metadata"]
    assert train_sae.loss_with(model(), text, lambda x: x) == pytest.approx(noted["loss"], abs=2e-3)
    rebuilt = train_sae.loss_with(model(), text, lambda x: sae.decode(sae.encode(x)))
    assert rebuilt == pytest.approx(noted["loss_reconstructed"], abs=2e-3)
    assert not any(block._forward_hooks for block in model().model.layers)


def test_the_autoencoder_command_notes_what_it_stores(small_corpora, monkeypatch, tmp_path):
    options = ["--steps", "4", "--tokens", "9000", "--seed", "2", "--out", str(tmp_path / "sae")]
    monkeypatch.setattr("sys.argv", ["train_sae", *options])
    train_sae.main()
    sae = SAE.load(tmp_path / "sae")
    assert sae.site == f"resid_post.{train_sae.LAYER}"
    noted, held_out = sae.cfg["metadata"], corpus.tokens(100_000, train_sae.HELD_OUT_SEED)
    found = train_sae.measure(sae, train_sae.activations(model(), held_out))
    for name, value in found.items():
        assert noted[name] == pytest.approx(value, abs=2e-4), name
    assert noted["loss"] < noted["loss_reconstructed"]


def test_training_an_autoencoder_explains_more_with_every_step():
    few, more = (train_sae.measure(train_sae.train(middle(), steps), middle()) for steps in (2, 12))
    assert more["variance_explained"] > few["variance_explained"]
    assert more["l0"] == pytest.approx(train_sae.K, abs=0.5)


@pytest.mark.skipif(importlib.util.find_spec("sae_lens") is None, reason="sae_lens is not installed")
def test_sae_lens_loads_the_folder_and_gives_the_same_codes():
    from sae_lens import SAE as Theirs

    theirs = Theirs.load_from_disk(tiny.sae_path())
    assert theirs.cfg.architecture() == "topk"
    assert theirs.cfg.metadata.hook_name == f"blocks.{train_sae.LAYER}.hook_resid_post"
    x = middle()[:500]
    torch.testing.assert_close(SAE.load(tiny.sae_path()).encode(x), theirs.encode(x), rtol=1e-4, atol=1e-4)
