"""WordPiece and Unigram: as BERT's and T5's tokenizers, and the same bytes each time."""

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from transformers import AutoTokenizer

from everlearn.errors import InvalidInput
from train.data.examples import Text
from train.data.options import TokenizerOptions
from train.data.tokenize import Tokens
from train.data.tokenizer_kinds import learn
from train.data.train_tokenizer import train_tokenizer
from train.recipe import TrainRecipe, deciding, validate_recipe

CHINESE = "".join(f"机器学习是第{n}个分支;{n}的算法从数据中学习。" for n in range(200, 240))


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped text, some Chinese and a few accents."""
    path = tmp_path_factory.mktemp("texts") / "texts.txt"
    jargon = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text()
    path.write_text(f"{jargon}\n\n{CHINESE}\n\nCafé, naïve, Überraschung.\n")
    return path


def learnt(texts: Path, kind: str, vocab_size: int = 1200, **options: object) -> Path:
    """A tokenizer beside the texts, learnt once per kind and options."""
    out = texts.with_name("-".join([kind, str(vocab_size), *map(str, options.values())]))
    if not out.exists():
        said = TokenizerOptions.model_validate({"kind": kind, **options})
        train_tokenizer([texts], vocab_size, out, kind=said)
    return out


@pytest.mark.parametrize("kind", ["wordpiece", "unigram"])
def test_another_process_learns_the_same_bytes(texts: Path, tmp_path: Path, kind: str) -> None:
    script = (
        "import sys; from pathlib import Path; from train.data.options import TokenizerOptions\n"
        "from train.data.train_tokenizer import train_tokenizer\n"
        "source, out, kind = sys.argv[1:]\n"
        "train_tokenizer([Path(source)], 1200, Path(out), kind=TokenizerOptions(kind=kind))"
    )
    subprocess.run([sys.executable, "-c", script, texts, tmp_path / "again", kind], check=True)
    for file in learnt(texts, kind).iterdir():
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes()


def test_wordpiece_is_berts(texts: Path) -> None:
    bert = AutoTokenizer.from_pretrained(learnt(texts, "wordpiece"))
    assert bert.convert_ids_to_tokens(range(5)) == ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    assert (len(bert), bert.mask_token_id, bert.pad_token_id) == (1200, 4, 0)
    pair = bert("Café", "学习 [MASK]")
    assert bert.convert_ids_to_tokens(pair.input_ids) == [
        "[CLS]", *bert.tokenize("cafe"), "[SEP]", "学", "习", "[MASK]", "[SEP]",
    ]  # fmt: skip
    assert pair.token_type_ids == [0] * pair.input_ids.index(3) + [0] + [1] * 4
    assert any(token.startswith("##") and len(token) > 3 for token in bert.get_vocab())
    ids = bert("The network's packet", add_special_tokens=False).input_ids
    assert bert.decode(ids) == "the network ' s packet"


def test_wordpiece_keeps_case_and_accents_where_asked(texts: Path) -> None:
    cased = AutoTokenizer.from_pretrained(learnt(texts, "wordpiece", lowercase=False))
    assert cased.decode(cased("Café", add_special_tokens=False).input_ids) == "Café"


def test_unigram_is_t5s_and_every_text_can_be_read_back(texts: Path) -> None:
    t5 = AutoTokenizer.from_pretrained(learnt(texts, "unigram"))
    assert t5.convert_ids_to_tokens(range(3)) == ["<pad>", "</s>", "<unk>"]
    assert [t5.convert_tokens_to_ids(f"<extra_id_{n}>") for n in (0, 1, 99)] == [1199, 1198, 1100]
    assert t5("a <extra_id_0>").input_ids[-2:] == [1199, 1]
    text = "naïve 世界 🙂\n  two  spaces 2024\tend"
    assert t5.decode(t5(text, add_special_tokens=False).input_ids) == text
    assert any("器学习" in token for token in t5.get_vocab()) and not any(
        token in t5.get_vocab() for token in ("24", "2024")
    )


@settings(max_examples=100, deadline=None)
@given(st.lists(st.sampled_from(["<", "</s>", "<pad>", "<0x41>", "<extra_id_0>", "a", " ", "\n", "世"])))
def test_names_of_special_pieces_in_a_text_stay_text(tokens_of_unigram: Tokens, parts: list[str]) -> None:
    text = "".join(["a", *parts])
    (example,) = tokens_of_unigram.encode(Text(text), 10_000)
    assert example.ids[-1] == 1
    assert not {0, 1, 2, 1199}.intersection(example.ids[:-1].tolist())
    assert tokens_of_unigram.decode(example).removesuffix("</s>") == text


@pytest.fixture(scope="module")
def tokens_of_unigram(texts: Path) -> Tokens:
    return Tokens(learnt(texts, "unigram"))


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_normalizers_are_options(texts: Path, kind: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(
        learnt(texts, kind, 600, normalize="nfkc", lowercase=True, strip_accents=True)
    )
    ids = tokenizer("ﬁne Überraschung", add_special_tokens=False).input_ids
    assert tokenizer.decode(ids) == "fine uberraschung"


@pytest.mark.parametrize(
    ("kind", "size", "message"),
    [
        ("wordpiece", 260, "room for letters and special tokens alone are 261"),
        ("unigram", 358, "bytes and special tokens alone are 359"),
        ("unigram", 380, r"the texts' letters alone are \d+ tokens, not 280: ask for a larger"),
        ("unigram", 90_000, r"the texts give \d+ tokens, not 89900: add texts"),
        ("wordpiece", 90_000, r"the texts give \d+ tokens, not 90000: add texts"),
    ],
)
def test_sizes_that_cannot_be_are_refused(
    texts: Path, tmp_path: Path, kind: str, size: int, message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        train_tokenizer([texts], size, tmp_path / "out", kind=TokenizerOptions.model_validate({"kind": kind}))
    assert not any(tmp_path.iterdir())


def test_letters_beyond_half_of_the_vocabulary_are_unknown() -> None:
    rare = "".join(map(chr, range(0x4E00, 0x4E00 + 2000)))
    prose = (resources.files("train.evaluate") / "held_out" / "jargon.txt").read_text()
    common = "".join(map(chr, range(0x3B1, 0x3B1 + 20))) * 99 + prose
    made = learn(lambda: iter([common, rare]), 300, TokenizerOptions(kind="wordpiece"))
    letters = [token for token in Tokenizer.from_str(made.tokenizer).get_vocab() if len(token) == 1]
    assert "m" in letters and 80 < len(letters) < 150


def test_a_recipe_names_the_kind_and_earlier_recipes_decide_as_before() -> None:
    said = {"architecture": {"layers": 1, "hidden": 8, "heads": 1}, "data": {"train": "texts"}}
    recipe = validate_recipe(TrainRecipe, said).model_dump(mode="json")
    assert not any("tokenizer" in key for key in deciding(recipe))
    named = {**said, "architecture": {**said["architecture"], "tokenizer": "wordpiece"}}  # type: ignore[dict-item]
    recipe = validate_recipe(TrainRecipe, named).model_dump(mode="json")
    assert deciding(recipe)["architecture.tokenizer.kind"] == "wordpiece"
