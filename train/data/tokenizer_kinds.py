"""Learn the three kinds of tokenizer: byte-level BPE, WordPiece and Unigram.

Each has the special tokens of its family, and gives the same bytes for the same texts. The trainers of the library
``tokenizers`` do so for byte-level BPE alone: WordPiece needs its letters numbered beforehand, and Unigram is learnt
by SentencePiece.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from everlearn.errors import InvalidInput
from train.data.options import TokenizerOptions

TEXT_END, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
BYTES = 256
BERT_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PAD, TEXT_STOP, UNKNOWN = "<pad>", "</s>", "<unk>"
"""T5's, with these ids: 0, 1, 2."""
SPACE = "▁"
LIKE_A_PIECE = r"<(?=/s>|pad>|unk>|0x[0-9A-F]{2}>)"
"""Where a text has the name of a special piece, it is split, so that it stays a text."""
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML, as SmolLM2 and Qwen speak it, without a system message of its own."""

MAX_WORDS = 4_000_000
"""So many different words are counted at once: about half a gigabyte. Of more, those met once are forgotten."""
MAX_WORD_CHARS = 64
"""Longer runs without a space, as of Chinese, are counted in parts; a piece has at most 16 characters."""

Texts = Callable[[], Iterator[str]]
"""The texts from the start, each time it is called."""


@dataclass(frozen=True)
class Learnt:
    """tokenizer.json, tokenizer_config.json and, for decoders, a chat template."""

    tokenizer: str
    config: dict[str, Any]
    chat_template: str | None = None


def learn(texts: Texts, vocab_size: int, options: TokenizerOptions) -> Learnt:
    """A tokenizer of ``vocab_size`` tokens, special ones included.

    Raises InvalidInput where those alone are more, or where the texts have too few words.
    """
    least = _smallest(options)
    if vocab_size < least:
        raise InvalidInput(
            f"vocab_size is {vocab_size}; {_what_is_always_there(options.kind)} alone are {least}",
            param="vocab_size",
        )
    made = {"bpe": _byte_bpe, "wordpiece": _wordpiece, "unigram": _unigram}[options.kind](
        texts, vocab_size, options
    )
    size = Tokenizer.from_str(made.tokenizer).get_vocab_size()
    if size < vocab_size:
        raise too_few(size, vocab_size)
    return made


def too_few(size: int, vocab_size: int) -> InvalidInput:
    return InvalidInput(
        f"the texts give {size} tokens, not {vocab_size}: add texts, or ask for a smaller vocabulary",
        param="vocab_size",
    )


def _smallest(options: TokenizerOptions) -> int:
    if options.kind == "wordpiece":
        return len(BERT_TOKENS) + BYTES
    return BYTES + 3 + (options.sentinels if options.kind == "unigram" else 0)


def _what_is_always_there(kind: str) -> str:
    return "room for letters and special tokens" if kind == "wordpiece" else "bytes and special tokens"


def _byte_bpe(texts: Texts, vocab_size: int, options: TokenizerOptions) -> Learnt:
    """No text has a character that it cannot write. Digits stand alone, as in SmolLM2; texts and answers both end
    with <|im_end|>."""
    tokenizer = Tokenizer(models.BPE())
    if normalizer := _normalizer(options):
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[TEXT_END, START, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    config = {"bos_token": START, "eos_token": END, "pad_token": END, "unk_token": TEXT_END}
    return Learnt(tokenizer.to_str(pretty=True), config, CHAT_TEMPLATE)


def _wordpiece(texts: Texts, vocab_size: int, options: TokenizerOptions) -> Learnt:
    """BERT's (Devlin et al., 2018, arXiv 1810.04805): each Chinese character is a word. Letters beyond half of the
    vocabulary, the rarest, become [UNK]."""
    lowercase = options.lowercase is not False
    strip = options.strip_accents if options.strip_accents is not None else lowercase
    steps: list[Any] = [normalizers.NFC()] if options.normalize == "nfc" else []
    steps += [normalizers.NFKC()] if options.normalize == "nfkc" else []
    steps.append(normalizers.BertNormalizer(strip_accents=strip, lowercase=lowercase))
    normalizer = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    letters, inner = _letters(texts(), normalizer, (vocab_size - len(BERT_TOKENS)) // 2)
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    tokenizer.normalizer, tokenizer.pre_tokenizer = normalizer, pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    trainer = trainers.WordPieceTrainer(
        vocab_size=vocab_size,
        special_tokens=[
            *BERT_TOKENS,
            *inner,
        ],  # so that these have numbers of their own before words are seen
        initial_alphabet=letters,
        limit_alphabet=len(letters),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(), trainer)
    cls, sep = BERT_TOKENS.index("[CLS]"), BERT_TOKENS.index("[SEP]")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", cls), ("[SEP]", sep)],
    )
    written = json.loads(tokenizer.to_str())
    written["added_tokens"] = written["added_tokens"][: len(BERT_TOKENS)]
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    config: dict[str, Any] = dict(zip(names, BERT_TOKENS, strict=True))
    config["model_input_names"] = ["input_ids", "token_type_ids", "attention_mask"]
    return Learnt(json.dumps(written, ensure_ascii=False, indent=2), config)


def _letters(texts: Iterable[str], normalizer: Any, most: int) -> tuple[list[str], list[str]]:
    """The most frequent letters, and "##" before each that may be inside a word; together at most ``most``."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(normalizer.normalize_str(text))
    letters: list[str] = []
    inner: list[str] = []
    split = pre_tokenizers.BertPreTokenizer()
    for letter, _ in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if letter.isspace():
            continue
        is_inside = len(split.pre_tokenize_str(f"a{letter}")) == 1 and not _is_chinese(letter)
        if len(letters) + len(inner) + 1 + is_inside > most:
            break
        letters.append(letter)
        inner += [f"##{letter}"] if is_inside else []
    return letters, inner


def _is_chinese(letter: str) -> bool:
    """Whether the normalizer sets it apart."""
    apart = normalizers.BertNormalizer(clean_text=False, strip_accents=False, lowercase=False)
    return apart.normalize_str(letter) != letter


def _unigram(texts: Texts, vocab_size: int, options: TokenizerOptions) -> Learnt:
    """T5's (Kudo, 2018, arXiv 1804.10959): <extra_id_0> has the largest id and the others count down from it; what
    is in no piece is written in bytes, so that every text can be read back but for a space that it begins with.
    Digits stand alone."""
    normalizer = _normalizer(options, normalize="nfkc")
    pieces = vocab_size - options.sentinels
    vocabulary = _sentencepieces(_counted(texts(), normalizer), pieces)
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=2, byte_fallback=True))
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(replacement=SPACE, prepend_scheme="always"),
            pre_tokenizers.Split(Regex(LIKE_A_PIECE), behavior="isolated"),
        ]
    )
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in (PAD, TEXT_STOP, UNKNOWN)])
    sentinels = [f"<extra_id_{number}>" for number in range(options.sentinels)]
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in reversed(sentinels)])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"$A {TEXT_STOP}", pair=f"$A {TEXT_STOP} $B {TEXT_STOP}", special_tokens=[(TEXT_STOP, 1)]
    )
    config: dict[str, Any] = {"pad_token": PAD, "eos_token": TEXT_STOP, "unk_token": UNKNOWN}
    config["additional_special_tokens"] = sentinels
    return Learnt(tokenizer.to_str(pretty=True), config)


def _counted(texts: Iterable[str], normalizer: Any) -> Counter[str]:
    """How often each word is there, in bounded memory."""
    words: Counter[str] = Counter()
    for text in texts:
        normal = normalizer.normalize_str(text) if normalizer else text
        for word in normal.replace(SPACE, " ").replace("\0", " ").split():
            for at in range(0, len(word), MAX_WORD_CHARS):
                words[word[at : at + MAX_WORD_CHARS]] += 1
        if len(words) > MAX_WORDS:
            words = Counter({word: count for word, count in words.items() if count > 1})
    return words


def _sentencepieces(words: Counter[str], size: int) -> list[tuple[str, float]]:
    """``size`` pieces with their log probabilities: pad, end, unknown, bytes, then pieces, best first.

    One thread, since sums of several depend on their number.
    """
    import sentencepiece

    model = BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.Train(  # type: ignore[attr-defined]
            sentence_iterator=(f"{word}\t{count}" for word, count in words.items()),
            input_format="tsv",
            model_writer=model,
            model_type="unigram",
            vocab_size=size,
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            max_sentence_length=16 * MAX_WORD_CHARS,
            pad_id=0,
            eos_id=1,
            unk_id=2,
            bos_id=-1,
            pad_piece=PAD,
            eos_piece=TEXT_STOP,
            unk_piece=UNKNOWN,
            num_threads=1,
            minloglevel=3,
        )
    except RuntimeError as error:
        raise _explained(str(error), size) from None
    made = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())  # type: ignore[call-arg]
    return [(made.IdToPiece(number), made.GetScore(number)) for number in range(made.GetPieceSize())]


def _explained(message: str, size: int) -> InvalidInput:
    if most := re.search(r"value <= (\d+)", message):
        return too_few(int(most[1]), size)
    if least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", message):
        return InvalidInput(
            f"the texts' letters alone are {least[1]} tokens, not {size}: ask for a larger vocabulary",
            param="vocab_size",
        )
    return InvalidInput(
        f"the texts give no Unigram tokenizer of {size} tokens: {message}", param="vocab_size"
    )


def _normalizer(options: TokenizerOptions, normalize: str = "none") -> Any:
    """What is done to a text before it is split; None where nothing is."""
    steps: list[Any] = []
    form = options.normalize or normalize
    if form == "nfc":
        steps.append(normalizers.NFC())
    if form == "nfkc":
        steps.append(normalizers.NFKC())
    if options.lowercase:
        steps.append(normalizers.Lowercase())
    if options.strip_accents:
        steps += [normalizers.NFD(), normalizers.StripAccents(), normalizers.NFC()]
    return normalizers.Sequence(steps) if steps else None
