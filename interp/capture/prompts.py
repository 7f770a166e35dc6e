"""Prompts: text, chat messages or token ids, each with an id that stays the same.

>>> Prompts(["The sky is blue.", {"id": "chat", "messages": [{"role": "user", "content": "Hello"}]}])
<Prompts: 2>
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from interp.capture.model import Model

__all__ = ["SHIPPED", "Prompt", "Prompts", "shipped"]

#: The prompt files of the package and their numbers of prompts.
SHIPPED = {
    "uncertainty": 8,
    "commitment": 4,
    "cognitive": 4,
    "sycophancy": 4,
    "tier3_uncertainty": 2,
    "tier3_cognitive": 2,
}


@dataclass(frozen=True)
class Prompt:
    """One prompt: exactly one of `text`, `messages` and `token_ids` is given.

    Attributes
    ----------
    id : str
        Given, or the first 12 hexadecimal digits of the SHA-256 of the content.
    text : str or None
        Tokenised as the tokenizer does by default (special tokens included).
    messages : tuple of dict or None
        Chat messages with ``role`` and ``content``, put through the model's chat template.
    token_ids : tuple of int or None
        Taken as they are.
    meta : dict
        Whatever else the source said.
    """

    id: str
    text: str | None = None
    messages: tuple[dict[str, str], ...] | None = None
    token_ids: tuple[int, ...] | None = None
    meta: dict[str, Any] = field(default_factory=dict, compare=False)


class Prompts(Sequence[Prompt]):
    """An ordered set of prompts.

    Parameters
    ----------
    items : iterable of str, dict or Prompt
        A string is text. A dict has one of ``text``, ``messages``, ``token_ids``, and maybe ``id``;
        other keys are kept in `Prompt.meta`.
    system : str, optional
        System message put before every prompt; strings then become the user's message of a chat.

    Raises
    ------
    ValueError
        If there is no prompt, one is empty or malformed, or two have the same id.
    """

    def __init__(
        self, items: Iterable[str | Mapping[str, Any] | Prompt], *, system: str | None = None
    ) -> None:
        if isinstance(items, (str, Mapping)):
            raise TypeError(
                "Prompts takes a list of prompts, got a single one: write Prompts([...]), or "
                "Prompts.from_file"
            )
        self._items = [_parse(item, i, system) for i, item in enumerate(items)]
        if not self._items:
            raise ValueError("no prompts: got an empty list, expected at least one")
        self._index: dict[str, int] = {}
        for i, prompt in enumerate(self._items):
            if prompt.id in self._index:
                raise ValueError(
                    f"prompts {self._index[prompt.id]} and {i} have the same id {prompt.id!r}: remove one, "
                    "or give "
                    "them different ids ({'id': …, 'text': …}); without one, the id is a hash of the content"
                )
            self._index[prompt.id] = i

    @classmethod
    def from_file(cls, path: str | os.PathLike[str], *, system: str | None = None) -> Prompts:
        """Read a .txt file (one prompt per line, blank lines skipped) or a .jsonl file (one dict per line).

        Parameters
        ----------
        path : path
        system : str, optional
            A system message to put before every prompt, as in the constructor.

        Returns
        -------
        Prompts

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        ValueError
            If it holds no prompts, or a line is wrong (named by its number).
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"no prompt file {path}: give a .txt (one per line) or .jsonl file")
        items: list[Any] = []
        try:
            text = path.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise ValueError(f"prompt file {path} is not UTF-8: {error}") from error
        for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other line ends, in strings
            if not line.strip():
                continue
            if path.suffix != ".jsonl":
                items.append(line.strip())
                continue
            try:
                items.append(json.loads(line))
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{path}, line {number}: not JSON ({error}): {line[:60]!r}") from error
        if not items:
            raise ValueError(f"prompt file {path} is empty: expected one prompt per line")
        try:
            return cls(items, system=system)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    @property
    def ids(self) -> list[str]:
        """The ids, in order."""
        return [p.id for p in self._items]

    def index(self, id: Any, *args: Any) -> int:
        """Position of a prompt.

        Parameters
        ----------
        id : str or Prompt
            Its id, or the prompt itself.
        *args : int
            As of ``list.index``.

        Returns
        -------
        int
        """
        return self._index[id] if isinstance(id, str) else self._items.index(id, *args)

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Prompt]:
        return iter(self._items)

    def __getitem__(self, i: Any) -> Any:
        return Prompts(self._items[i]) if isinstance(i, slice) else self._items[i]

    def __add__(self, other: Prompts) -> Prompts:
        return Prompts([*self, *other])

    def __repr__(self) -> str:
        return f"<Prompts: {len(self)}>"

    def as_chat(self) -> Prompts:
        """The same prompts, ids included, with every text as the user's message of a chat."""
        return Prompts(
            p
            if p.text is None
            else Prompt(p.id, messages=({"role": "user", "content": p.text},), meta=p.meta)
            for p in self
        )

    def encode(self, model: Model, *, max_new_tokens: int = 0) -> list[list[int]]:
        """Token ids of every prompt, as the model will see them.

        Parameters
        ----------
        model : Model
            Its tokenizer, chat template and context count.
        max_new_tokens : int
            Tokens that must still fit behind the prompt.

        Returns
        -------
        list of list of int

        Raises
        ------
        ValueError
            If a prompt has no tokens or too many (named, with its length), or an id is not in the vocabulary.
        """
        encoded = [_encode(p, model) for p in self._items]
        for prompt, ids in zip(self._items, encoded, strict=True):
            if not ids:
                raise ValueError(f"prompt {prompt.id!r} is empty: it has no tokens")
            if len(ids) + max_new_tokens > model.context:
                more = f" and {max_new_tokens} new ones" if max_new_tokens else ""
                raise ValueError(
                    f"prompt {prompt.id!r} is too long: {len(ids)} tokens{more}, but the context of "
                    f"{model.name} "
                    f"is {model.context}"
                )
            low, high = min(ids), max(ids)
            if low < 0 or high >= model.config.vocab_size:
                raise ValueError(
                    f"prompt {prompt.id!r} has token id {low if low < 0 else high}: expected 0 … "
                    f"{model.config.vocab_size - 1}"
                )
        return encoded


def shipped(name: str) -> Prompts:
    """The prompts of a file that comes with the package.

    Parameters
    ----------
    name : str
        A key of `SHIPPED`: ``"uncertainty"`` (8 prompts), ``"commitment"`` (4), ``"cognitive"`` (4),
        ``"sycophancy"`` (4), ``"tier3_uncertainty"`` (2), ``"tier3_cognitive"`` (2).

    Returns
    -------
    Prompts

    Raises
    ------
    FileNotFoundError
        If there is no such file, listing what there is.
    """
    if name not in SHIPPED:
        raise FileNotFoundError(f"no shipped prompts {name!r}: there are {', '.join(SHIPPED)}")
    with resources.as_file(resources.files("interp.capture") / "data" / f"prompts_{name}.txt") as path:
        return Prompts.from_file(path)


def content_id(content: Any) -> str:
    """The id of a prompt without one: 12 hexadecimal digits of the SHA-256 of its content."""
    text = content if isinstance(content, str) else json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _parse(item: Any, i: int, system: str | None) -> Prompt:
    if isinstance(item, Prompt):
        return item
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping):
        raise ValueError(f"prompt {i}: got {type(item).__name__}, expected a string or a dict")
    given = [k for k in ("text", "messages", "token_ids") if item.get(k) is not None]
    if len(given) != 1:
        raise ValueError(
            f"prompt {i}: expected exactly one of 'text', 'messages' and 'token_ids', got "
            f"{given or list(item)}"
        )
    try:
        json.dumps([str(item.get("id")), item[given[0]]], ensure_ascii=False, default=str).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"prompt {i} holds half a surrogate pair, which is no text: {error}") from error
    content = item[given[0]]
    if given[0] == "text" and (not isinstance(content, str) or not content.strip()):
        raise ValueError(f"prompt {i} is empty: got {content!r}")
    if given[0] == "token_ids":
        content = _token_ids(content, i)
    elif given[0] == "messages":
        content = _messages(content, i)
    if not content:
        raise ValueError(f"prompt {i} is empty: {given[0]} has no items")
    if system is not None and given[0] != "token_ids":
        messages = ({"role": "user", "content": content},) if given[0] == "text" else content
        given, content = ["messages"], ({"role": "system", "content": system}, *messages)
    id = str(item["id"]) if item.get("id") not in (None, "") else content_id(content)
    meta = {k: v for k, v in item.items() if k not in ("id", "text", "messages", "token_ids")}
    return Prompt(id, meta=meta, **{given[0]: content})


def _token_ids(content: Any, i: int) -> tuple[int, ...]:
    try:
        return tuple(operator.index(t) for t in content)
    except TypeError as error:
        raise ValueError(
            f"prompt {i}: token_ids must be a list of integers, got {str(content)[:60]!r}"
        ) from error


def _messages(content: Any, i: int) -> tuple[dict[str, str], ...]:
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"prompt {i}: messages must be a list of dicts, got {str(content)[:60]!r}")
    for m in content:
        if not isinstance(m, Mapping) or not all(isinstance(m.get(k), str) for k in ("role", "content")):
            got = sorted(map(str, m)) if isinstance(m, Mapping) else str(m)[:60]
            raise ValueError(f"prompt {i}: a message needs 'role' and 'content', both text, got {got}")
    return tuple(dict(m) for m in content)


def _encode(prompt: Prompt, model: Model) -> list[int]:
    if prompt.token_ids is not None:
        return list(prompt.token_ids)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ValueError(
            f"prompt {prompt.id!r} is text, but {model.name} has no tokenizer: give 'token_ids' instead"
        )
    if prompt.messages is not None:
        return _encode_chat(prompt, model)
    ids = list(tokenizer(prompt.text)["input_ids"])
    bos = tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos] and str(prompt.text).startswith(str(tokenizer.bos_token)):
        ids = ids[1:]  # the text brought its own, the tokenizer added another
    return ids


def _encode_chat(prompt: Prompt, model: Model) -> list[int]:
    tokenizer, messages = model.tokenizer, list(prompt.messages or ())
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError(
            f"prompt {prompt.id!r} has chat messages, but the tokenizer of {model.name} has no chat "
            "template: "
            "give 'text' instead"
        )
    try:
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=messages[-1]["role"] != "assistant"
        )
    except Exception as error:  # a Jinja error: templates raise it for roles that they do not take
        raise ValueError(
            f"prompt {prompt.id!r}: the chat template of {model.name} refused roles "
            f"{[m['role'] for m in messages]} ({error})"
        ) from error
    # The template writes the special tokens itself: adding them again would give a second BOS.
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
