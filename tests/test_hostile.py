"""Whatever comes in: refused in words, with ValueError, or taken for exactly what it says.

Nothing in between: no other exception, no value that was silently changed, nothing accepted that cannot be
used or saved afterwards. (The probe's input has tests of its own, `test_probe_input`; files that were damaged
by accident are in `test_faults`, attacks in `test_security`.)
"""

from __future__ import annotations

import copy
import json
import string
import warnings
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import lens_world
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from interp.capture.model import Model, load_model
from interp.capture.prompts import Prompts
from interp.capture.traits import Trait, TraitVectors
from interp.files import read_json, write_json
from interp.lens import ConceptPack, Lenses, train_lenses
from interp.report import Report, Table
from interp.sae import SAE

few = settings(max_examples=60)


def attempt(call: Callable[..., Any], *args: Any, **options: Any) -> tuple[Any, str]:
    """The result and "", or None and what the ValueError said; any other exception passes."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # unknown fields and levels out of order of a pack
        try:
            return call(*args, **options), ""
        except ValueError as error:
            return None, str(error)


words = st.text(max_size=8) | st.sampled_from(["", " ", "\ud800", "a", "b", "0", "true", "\x00", "../x"])
scalars = st.none() | st.booleans() | st.integers() | st.floats() | words
values = st.recursive(
    scalars, lambda v: st.lists(v, max_size=3) | st.dictionaries(words, v, max_size=3), max_leaves=5
)


def places(data: Any, at: tuple = ()) -> list[tuple]:
    """Paths to everything inside some JSON."""
    found = [at] if at else []
    inside = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    for key, value in inside:
        found += places(value, (*at, key))
    return found


@st.composite
def broken(draw: Any, good: Any) -> Any:
    """The JSON with one value replaced, removed, or joined by another."""
    data = copy.deepcopy(good)
    *path, last = draw(st.sampled_from(places(data)))
    parent = data
    for key in path:
        parent = parent[key]
    how = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
    if how == "remove":
        del parent[last]
    elif how == "add" and isinstance(parent, dict):
        parent[draw(words)] = draw(values)
    else:
        parent[last] = draw(values)
    return data


# ------------------------------------------------------------------------------------- prompts

messages = st.fixed_dictionaries({"role": words, "content": words})
items = (
    words
    | values
    | st.fixed_dictionaries(
        {},
        optional={
            "id": values,
            "text": words | values,
            "messages": st.lists(messages, max_size=3) | values,
            "token_ids": st.lists(st.integers(), max_size=4) | values,
            "label": values,
        },
    )
)


@given(st.lists(items, max_size=4), st.none() | words)
def test_prompts_are_taken_for_what_they_say(given_items: list[Any], system: str | None) -> None:
    prompts, _ = attempt(Prompts, given_items, system=system)
    if prompts is None:
        return
    assert len(prompts) == len(given_items) == len(set(prompts.ids))
    assert Prompts(given_items, system=system).ids == prompts.ids
    for item, prompt in zip(given_items, prompts, strict=True):
        item = {"text": item} if isinstance(item, str) else item
        assert [prompt.text, prompt.messages, prompt.token_ids].count(None) == 2
        if prompt.token_ids is not None:
            assert list(prompt.token_ids) == list(item["token_ids"])
            assert all(type(t) is int for t in prompt.token_ids)
        elif prompt.text is not None:
            assert prompt.text == item["text"]
        else:
            assert all(isinstance(m["content"], str) for m in prompt.messages)
            if item.get("text") is None:
                assert list(prompt.messages)[-len(item["messages"]) :] == item["messages"]
        json.dumps(prompt.id, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "item",
    [
        {"token_ids": [1.5]},
        {"token_ids": "12"},
        {"token_ids": 5},
        {"token_ids": ["7"]},
        {"token_ids": [[1, 2]]},
        {"token_ids": np.array([0.5])},
        {"token_ids": {"a": 1}},
        {"messages": "hello"},
        {"messages": 5},
        {"messages": [5]},
        {"messages": ["ab", "cd"]},
        {"messages": {"role": "user", "content": "one message, no list"}},
        {"messages": [{"role": "user", "content": None}]},
        {"messages": [{"role": 3, "content": "x"}]},
        {"text": 5},
        {"text": ["a"]},
    ],
)
def test_prompts_that_say_nothing_clear_are_refused(item: Any, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"prompt 1\b"):
        Prompts(["fine", item])
    if not isinstance(item.get("token_ids"), np.ndarray):
        file = tmp_path / "p.jsonl"
        file.write_text('{"text": "fine"}\n' + json.dumps(item))
        with pytest.raises(ValueError, match=r"p\.jsonl: prompt 1\b"):
            Prompts.from_file(file)


@pytest.mark.parametrize("ids", [np.array([1, 2]), torch.tensor([1, 2]), (1, 2), np.uint8([1, 2])])
def test_token_ids_of_any_integer_kind(ids: Any) -> None:
    assert Prompts([{"token_ids": ids}])[0].token_ids == (1, 2)


@given(data=st.binary(max_size=40), suffix=st.sampled_from([".txt", ".jsonl"]))
def test_any_bytes_as_a_prompt_file(
    data: bytes, suffix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.getbasetemp() / f"bytes{suffix}"
    file.write_bytes(data)
    prompts, why = attempt(Prompts.from_file, file)
    assert len(prompts) >= 1 if prompts else str(file) in why


lines = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\n\ufeff"), max_size=10)


@given(st.lists(lines, min_size=1, max_size=4, unique_by=str.strip))
def test_a_text_file_gives_its_lines(given_lines: list[str]) -> None:
    import tempfile

    wanted = [line.strip() for line in given_lines if line.strip()]
    if not wanted:
        return
    with tempfile.TemporaryDirectory() as folder:
        plain, rich = Path(folder, "p.txt"), Path(folder, "p.jsonl")
        plain.write_text("\n".join(given_lines), encoding="utf-8", newline="")
        assert [p.text for p in Prompts.from_file(plain)] == wanted
        rich.write_text("\n".join(json.dumps({"text": w}) for w in wanted), encoding="utf-8")
        assert [p.text for p in Prompts.from_file(rich)] == wanted


# --------------------------------------------------------------------------------------- sites


@pytest.fixture(scope="module")
def tiny() -> Model:
    return load_model("tiny")


site_text = words | st.text(string.ascii_lowercase + "_.*-, 0123456789", max_size=14)
site_like = st.builds("{}.{}".format, st.sampled_from(["resid_post", "q", "embed", "attn", ""]), site_text)


@given(patterns=site_text | site_like | st.lists(site_text | site_like | values, max_size=3) | values)
def test_any_site_exists_or_is_refused_with_what_does(tiny: Model, patterns: Any) -> None:
    found, why = attempt(tiny.sites.resolve, patterns)
    if found is None:
        assert "resid_post" in why or "layers 0" in why
        return
    assert found
    assert len(set(found)) == len(found)
    assert tiny.sites.resolve(found) == found
    for site in found:
        tiny.sites.source(site)


# --------------------------------------------------------------------------------------- packs

GOOD_PACK = {
    "name": "p",
    "version": "1",
    "concepts": [
        {"id": "a", "term": "a", "definition": "", "parents": [], "level": 0, "examples": {}},
        {
            "id": "b",
            "term": "b",
            "definition": "one",
            "parents": ["a"],
            "level": 1,
            "examples": {
                "positive": ["One.", {"text": "Two.", "source": "s", "also": ["c"]}],
                "negative": ["Three."],
            },
        },
        {"id": "c", "term": "c", "parents": ["a"], "level": 1},
    ],
}


def _used(pack: ConceptPack, folder: Path) -> None:
    """What every pack that was accepted can do."""
    again = ConceptPack.load(pack.save(folder / "again.json"))
    assert again.to_dict() == pack.to_dict()
    assert again.hash == pack.hash
    for concept in pack:
        for relatives in (pack.siblings(concept.id), pack.cousins(concept.id), pack.ancestors(concept.id)):
            assert concept.id not in relatives
        assert all(concept.id in pack.siblings(s) or not concept.parents for s in pack.siblings(concept.id))
        assert pack.descendants(concept.id) >= set(pack.children(concept.id))
    repr(pack)


@given(data=broken(GOOD_PACK) | values)
def test_packs_are_refused_or_can_be_used_and_saved(
    data: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp()
    pack, _ = attempt(ConceptPack.from_dict, data)
    if pack is None:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _used(pack, folder)
    for concept in pack:
        assert concept.id
        assert concept.level >= 0


@pytest.mark.parametrize("field", ["name", "version"])
def test_a_name_that_no_file_can_hold(field: str) -> None:
    with pytest.raises(ValueError, match="half a surrogate pair"):
        ConceptPack.from_dict({**GOOD_PACK, field: "\ud800"})


@given(data=st.binary(max_size=60) | broken(GOOD_PACK).map(lambda d: json.dumps(d).encode()))
def test_any_file_as_a_pack(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    file = tmp_path_factory.getbasetemp() / "pack.json"
    file.write_bytes(data)
    pack, why = attempt(ConceptPack.load, file)
    assert pack is not None or str(file) in why


# --------------------------------------------------------------------------------- autoencoders

D, N = 4, 6
GOOD_CFG = {
    "architecture": "topk",
    "k": 2,
    "apply_b_dec_to_input": True,
    "normalize_activations": "none",
    "rescale_acts_by_decoder_norm": False,
    "reshape_activations": "none",
    "metadata": {"hook_name": "blocks.3.hook_resid_post"},
    "activation_fn_kwargs": {"k": 2},
}


def sae_weights() -> dict[str, torch.Tensor]:
    rng = torch.Generator().manual_seed(0)
    shapes = {"W_enc": (D, N), "b_enc": (N,), "W_dec": (N, D), "b_dec": (D,)}
    return {name: torch.randn(*shape, generator=rng) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def sae_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sae")
    save_file(sae_weights(), folder / "sae_weights.safetensors")
    return folder


@given(cfg=broken(GOOD_CFG) | broken({**GOOD_CFG, "architecture": "standard"}) | values)
def test_a_sparse_code_of_any_configuration(sae_folder: Path, cfg: Any) -> None:
    (sae_folder / "cfg.json").write_text(json.dumps(cfg))
    sae, why = attempt(SAE.load, sae_folder)
    if sae is None:
        assert str(sae_folder) in why
        return
    repr(sae)
    code = sae.encode_csr(torch.ones(3, D))
    assert code.shape == (3, N)
    assert np.isfinite(code.data).all()
    assert (code.data > 0).all()
    assert code.toarray() == pytest.approx(sae.encode(torch.ones(3, D)).numpy(), abs=1e-5)
    if sae.k:
        assert type(sae.k) is int
        assert (np.diff(code.indptr) <= sae.k).all()


@given(data=st.binary(max_size=60), name=st.sampled_from(["cfg.json", "sae_weights.safetensors"]))
def test_any_bytes_as_an_autoencoder(data: bytes, name: str, sae_folder: Path) -> None:
    (sae_folder / "cfg.json").write_text(json.dumps(GOOD_CFG))
    kept = (sae_folder / name).read_bytes()
    (sae_folder / name).write_bytes(data)
    try:
        with pytest.raises(ValueError, match="cannot be read"):
            SAE.load(sae_folder)
    finally:
        (sae_folder / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["W_enc", "b_enc", "W_dec", "b_dec"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_no_numbers_are_refused(name: str, value: float) -> None:
    weights = sae_weights()
    weights[name].view(-1)[1] = value
    with pytest.raises(ValueError, match=f"{name} .*not finite"):
        SAE(weights, GOOD_CFG)


# ------------------------------------------------------- files of ours, edited and sealed again


@pytest.fixture(scope="module")
def lens_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, pack = lens_world.model(), lens_world.pack()
    lenses = train_lenses(model, pack, site="resid_post.1", concepts=["bird", "car"], growth=(10,))
    return lenses.save(tmp_path_factory.mktemp("lenses"))


@few
@given(data=st.data())
def test_lenses_that_were_edited(lens_folder: Path, data: Any) -> None:
    file = lens_folder / "lenses.json"
    good, before = read_json(file), file.read_bytes()
    try:
        write_json(file, _sealable(data.draw(broken(good))))
        lenses, why = attempt(Lenses.load, lens_folder)
    finally:
        file.write_bytes(before)
    if lenses is None:
        assert str(lens_folder) in why
        return
    assert len(lenses.frame()) == len(lenses.reports)
    assert lenses.weight.shape == (len(lenses), lenses.width)
    assert lenses.site


@pytest.mark.parametrize(
    "change", [{"reports": [5]}, {"reports": 5}, {"reports": []}, {"meta": 5}, {"meta": {}}, {"words": 5}]
)
def test_lenses_that_say_nothing_clear_are_refused(lens_folder: Path, change: dict) -> None:
    file = lens_folder / "lenses.json"
    before = file.read_bytes()
    try:
        write_json(file, read_json(file) | change)
        with pytest.raises(ValueError, match="are damaged"):
            Lenses.load(lens_folder)
    finally:
        file.write_bytes(before)


@pytest.fixture(scope="module")
def trait_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    numbers: Any = dict.fromkeys(("auroc", "low", "high", "random", "shuffled"), 0.5)
    vectors = {"resid_post.1": torch.ones(4), "resid_post.2": torch.ones(4)}
    trait = Trait(
        name="t",
        method="mean",
        pool="mean",
        kind="natural",
        site="resid_post.1",
        vectors=vectors,
        layers={"resid_post.1": 0.9},
        other={},
        n=8,
        **numbers,
    )
    about = {"name": "m", "fingerprint": "f", "width": 4}
    return TraitVectors([trait], about).save(tmp_path_factory.mktemp("traits") / "t")


@few
@given(data=st.data())
def test_trait_vectors_that_were_edited(trait_path: Path, data: Any) -> None:
    file = trait_path.with_name("t.json")
    good, before = read_json(file), file.read_bytes()
    try:
        write_json(file, _sealable(data.draw(broken(good))))
        traits, why = attempt(TraitVectors.load, trait_path)
    finally:
        file.write_bytes(before)
    assert traits is not None or str(trait_path) in why


@pytest.mark.parametrize("name", [[], {}, None, "another"])
def test_a_trait_whose_name_is_none_is_refused(trait_path: Path, name: Any) -> None:
    file = trait_path.with_name("t.json")
    content, before = read_json(file), file.read_bytes()
    try:
        write_json(file, {**content, "traits": [{**content["traits"][0], "name": name}]})
        with pytest.raises(ValueError, match="is not what `save` wrote"):
            TraitVectors.load(trait_path)
    finally:
        file.write_bytes(before)


def _sealable(content: Any) -> Any:
    """As a file holds it: text that UTF-8 can hold."""
    return json.loads(json.dumps(content).replace("\\ud800", "?"))


# -------------------------------------------------------------------------------------- report


class Page(HTMLParser):
    """The tags and the text of a page."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.text = ""
        self.attributes: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [name for name, _ in attrs]

    def handle_data(self, data: str) -> None:
        self.text += data


SHOWN = "html head meta meta title style body main header h1 p h2 p div table thead tr th th tbody tr td td p"
nasty = st.text(st.characters(codec="utf-8", exclude_characters="`\r\x00"), max_size=9) | st.sampled_from(
    ["<script>x</script>", "</style>", "<!--", "]]>", "&lt;", '" onload="x', "'", "<img src=x>", "&#60;b"]
)


@given(nasty, nasty, nasty, nasty)
def test_a_report_shows_text_as_it_is(title: str, lead: str, cell: str, note: str) -> None:
    report = Report(title, lead)
    report.section("Section", note)
    report.table(Table("Table", [cell, "n"], [[cell, "1"]], note))
    page = Page(report.html())
    wanted = SHOWN if note else SHOWN.replace("h2 p", "h2")
    assert page.tags == wanted.split()
    assert set(page.attributes) <= {"lang", "charset", "name", "content", "class"}
    for text in (title, lead, cell, note):
        assert text in page.text


@given(st.lists(nasty, min_size=1, max_size=3), st.lists(st.lists(nasty, max_size=4), max_size=3))
def test_a_table_is_whole_or_refused(columns: list[str], body: list[list[str]]) -> None:
    fits = all(len(row) == len(columns) for row in body)
    table, _ = attempt(Table, "t", columns, body)
    assert fits == (table is not None)
    if table is None:
        return
    text = table.text()
    for row in body:
        assert all(cell in text for cell in row)
