"""The tokenizer: one token for each word of the language, letters for words outside it.

WordPiece without merges to learn: known words are single tokens, an unknown one falls apart into its
longest known beginning and single letters, so any text can be written and read back (in lower case,
without accents).
"""

from __future__ import annotations

from functools import lru_cache
from string import ascii_lowercase, digits

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from interp.tiny import grammar

PAD, BOS, EOS, UNK, USER, ASSISTANT = SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<user>", "<assistant>")

#: A question of the user, an answer that ends with ``</s>``; the only two roles of the training text.
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{% if message['role'] == 'user' %}{{ '<user>' + message['content'] }}"
    "{% elif message['role'] == 'assistant' %}{{ '<assistant>' + message['content'] + eos_token }}"
    "{% else %}{{ raise_exception('the roles are user and assistant, found ' + message['role']) }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<assistant>' }}{% endif %}"
)


def vocabulary() -> dict[str, int]:
    """Token ids: special tokens, letters and digits, punctuation, then the words in alphabetical order."""
    signs = "\"'();-/%&*+=<>#@$_~[]{}^\\`|" + digits + ascii_lowercase
    pieces = ["##" + c for c in ascii_lowercase + digits]
    return {token: i for i, token in enumerate(dict.fromkeys([*SPECIAL, *signs, *pieces, *grammar.words()]))}


@lru_cache(maxsize=1)
def build() -> Tokenizer:
    """The tokenizer of the language, made from its vocabulary alone; ``tokenizer.json`` is this one."""
    vocab = vocabulary()
    tokenizer = Tokenizer(models.WordPiece(vocab, unk_token=UNK, continuing_subword_prefix="##"))
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    glue = [decoders.Replace(f" {sign}", sign) for sign in ".,?!:"]
    tokenizer.decoder = decoders.Sequence([decoders.WordPiece(prefix="##", cleanup=False), *glue])
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, vocab[BOS])]
    )
    return tokenizer
