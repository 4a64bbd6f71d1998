"""An encoder loses layers, what they did is taken over, and it learns from the whole one: real text, tiny models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from compress.distill.encoder_objective import SHORTEST, EmbeddingDistillation, Spans
from compress.distill.recipe import DistillRecipe, Student
from compress.distill.run import distill
from compress.plan import follow
from compress.prune.layers import with_layers
from compress.prune.prune_encoder import pruned, take_over
from compress.recipe import CompressPlan, Prune
from compress.sentence_encoder import Encoder, embedding_similarity, load_encoder, texts_of
from everlearn.errors import EverlearnError, InvalidInput, Unsupported
from everlearn.importing.sources import import_model
from everlearn.progress import silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from tests.support.tiny_models import write_bert
from train.data.options import DataOptions
from train.data.prepare import prepare
from train.data.store import TokenStore, open_store
from train.data.tokenize import marks
from train.evaluate.held_out_text import held_out_text
from train.recipe import Data, Optimizer


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four layers, of which layer 2 adds nothing."""
    directory = tmp_path_factory.mktemp("bert")
    model = write_bert(directory, layers=4)
    with torch.no_grad():
        for part in (model.encoder.layer[2].attention.output.dense, model.encoder.layer[2].output.dense):
            part.weight.zero_()
            part.bias.zero_()
    model.save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("text") / "corpus.txt"
    file.write_text("\n\n".join(held_out_text().text.split("\n\n")[:120]))
    return file


@pytest.fixture(scope="module")
def store(model_dir: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    folder = tmp_path_factory.mktemp("store") / "data"
    prepare((corpus,), model_dir, folder, DataOptions(max_tokens=64, held_fraction=0.0))
    return open_store(folder / "train")


@pytest.fixture(scope="module")
def texts(model_dir: Path, store: TokenStore) -> list[torch.Tensor]:
    return texts_of(np.array(store.tokens, dtype=np.int64), model_dir)


def test_the_layer_that_adds_nothing_goes_first_and_is_not_missed(
    model_dir: Path, texts: list[torch.Tensor]
) -> None:
    whole = load_encoder(model_dir)
    smaller, made = pruned(whole, Prune(layers=3), texts, silent)
    assert made["dropped"] == [2] and smaller.body.config.num_hidden_layers == 3
    assert embedding_similarity(smaller.embed, whole.embed, model_dir)["cosine_min"] > 0.99999


def test_dropped_layers_are_made_up_for_by_the_one_before(model_dir: Path, texts: list[torch.Tensor]) -> None:
    whole = load_encoder(model_dir)
    kept = [0, 3]
    bare = Encoder(with_layers(whole.body, kept), whole.pooling).eval()
    solved = Encoder(with_layers(whole.body, kept), whole.pooling).eval()
    apart = take_over(whole, solved, kept, texts)
    assert list(apart) == [0] and apart[0][1] < 0.8 * apart[0][0]
    before, after = (
        embedding_similarity(one.embed, whole.embed, model_dir)["cosine_mean"] for one in (bare, solved)
    )
    assert after > before + 0.2 * (1 - before), (before, after)


def test_layers_that_end_otherwise_stay_as_they_were(model_dir: Path, texts: list[torch.Tensor]) -> None:
    whole, other = load_encoder(model_dir), load_encoder(model_dir)
    smaller = Encoder(with_layers(other.body, [0, 3]), whole.pooling).eval()
    smaller.body.encoder.layer[0].output.LayerNorm = torch.nn.Identity()
    before = smaller.body.encoder.layer[0].output.dense.weight.clone()
    assert take_over(whole, smaller, [0, 3], texts) == {}
    assert torch.equal(smaller.body.encoder.layer[0].output.dense.weight, before)


def test_spans_are_a_function_of_their_number_and_keep_to_documents(
    model_dir: Path, store: TokenStore
) -> None:
    ends = marks(model_dir)
    assert ends == ([1], [2])
    spans = Spans(store, 64, 48, 7, *ends)
    documents = {tuple(one.ids.tolist()) for one in store}
    lengths = set()
    for step in range(40):
        batch = spans.batch(step, 4)
        for name, one in Spans(store, 64, 48, 7, *ends).batch(step, 4).items():
            assert np.array_equal(one, batch[name])
        ids, mask = batch["input_ids"], batch["document_ids"] >= 0
        rows, length = ids.shape
        lengths.add(length)
        assert SHORTEST <= length <= 48 and rows == 4 * 64 // length
        for line in range(rows):
            first, *text, last = ids[line][mask[line]].tolist()
            assert (first, last) == (1, 2) and text
            assert any(is_part(text, [one for one in known if one not in (1, 2)]) for known in documents)
    assert min(lengths) < 16 and max(lengths) > 40
    assert not np.array_equal(spans.batch(3, 4)["input_ids"], spans.batch(4, 4)["input_ids"])
    assert np.array_equal(spans.batch(3, 4, rank=1, ranks=2)["input_ids"], spans.batch(7, 4)["input_ids"])


def test_texts_are_short_and_long_and_have_their_marks(model_dir: Path) -> None:
    tokens = np.arange(3, 503)
    batches = texts_of(tokens, model_dir)
    assert [one.shape[1] for one in batches] == [16, 32, 64], "the encoder reads 64 at most"
    assert all((one[:, 0] == 1).all() and (one[:, -1] == 2).all() for one in batches)
    assert batches[0][0].tolist() == [1, *range(3, 17), 2] and batches[1][0, 1] == 17
    inner = np.concatenate([one[:, 1:-1].flatten().numpy() for one in batches])
    assert len(set(inner.tolist())) == len(inner) > 400


def is_part(text: list[int], of: list[int]) -> bool:
    return any(of[at : at + len(text)] == text for at in range(len(of) - len(text) + 1))


def test_padding_changes_no_distance(model_dir: Path) -> None:
    whole = load_encoder(model_dir)
    student = with_layers(whole.body, [0, 3])
    ids = torch.randint(3, 500, (2, 12), generator=torch.Generator().manual_seed(0))
    short = {"input_ids": ids[:1, :9], "document_ids": torch.zeros(1, 9, dtype=torch.int64)}
    padded = {"input_ids": ids[:1].clone(), "document_ids": torch.zeros(1, 12, dtype=torch.int64)}
    padded["document_ids"][:, 9:] = -1
    for hidden in (0.0, 1.0):
        objective = EmbeddingDistillation(whole, hidden)
        with torch.no_grad():
            (one, count), (other, _) = objective(student, short), objective(student, padded)
            nothing, _ = objective(whole.body, short)
        assert count == 1 and torch.allclose(one, other, atol=1e-5)
        assert one > 0.01 and nothing.abs() < 1e-5


def recipe(model: str, corpus: Path, **said: Any) -> DistillRecipe:
    options: dict[str, Any] = {
        "name": "student",
        "teacher": model,
        "student": Student(layers=2),
        "data": Data(train=(corpus,)),
        "sequence_tokens": 64,
        "batch_tokens": 512,
        "micro_batch": 8,
        "steps": 4,
        "optimizer": Optimizer(lr=2e-3),
        "hidden": 1.0,
    }
    return DistillRecipe(**{**options, **said})


def plan(corpus: Path, steps: int) -> CompressPlan:
    taught = recipe("bert", corpus, steps=steps).model_dump(exclude={"name", "teacher", "student"})
    return CompressPlan.model_validate(
        {"prune": {"layers": 1}, "heal": taught, "targets": [{"to": "int8-onnx"}]}
    )


def test_a_plan_prunes_heals_and_quantizes_and_does_nothing_twice(
    model_dir: Path, corpus: Path, tmp_path: Path
) -> None:
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(model_dir), name="bert")
    smaller, healed, int8 = follow(settings, "bert@1", plan(corpus, 100))
    assert [one.format for one in (smaller, healed, int8)] == ["safetensors", "safetensors", "onnx"]
    assert {one.task for one in (smaller, healed, int8)} == {"embed"}
    assert smaller.manifest.recipe["prune"]["dropped"] and 2 in smaller.manifest.recipe["prune"]["dropped"]
    assert healed.manifest.parameters == smaller.manifest.parameters < 0.8 * 4 * 50_000 + 512 * 64 + 128 * 64
    before, after = (one.manifest.metrics["cosine_mean"] for one in (smaller, healed))
    assert after > before + 0.2 * (1 - before), (before, after)
    taught = healed.manifest.metrics
    assert taught["held_cosine"] > taught["held_cosine_before"]
    assert int8.manifest.metrics["cosine_min"] > 0.95 and int8.parent_digest == healed.digest
    registry = Registry(settings)
    assert (registry.path(healed) / "1_Pooling" / "config.json").is_file()
    whole, student = (load_encoder(registry.path(one)) for one in (registry.weights("bert@1"), healed))
    assert embedding_similarity(student.embed, whole.embed, model_dir)["cosine_mean"] == pytest.approx(
        after, abs=1e-4
    )
    embeddings = [one.body.embeddings.word_embeddings.weight for one in (whole, student)]
    assert torch.equal(*embeddings), "a token that the text does not have stays among those that it has"
    again = list(follow(settings, "bert@1", plan(corpus, 100)))
    assert [one.ref for one in again] == [one.ref for one in (smaller, healed, int8)]


def test_a_student_has_the_teachers_own_layers(model_dir: Path, corpus: Path, tmp_path: Path) -> None:
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(model_dir), name="bert")
    made = distill(settings, recipe("bert", corpus), tmp_path / "run")
    assert made.task == "embed" and made.ref == "student@1" and made.manifest.metrics["reconstructed"]


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ({"prune": {"layers": 4}}, r"4 layers are to stay; the model has 4"),
        ({"prune": {"drop": [4]}}, r"there is no layer 4: the model's 4 are 0 to 3"),
        ({"prune": {"ffn": 64}}, r"bert@1 is an encoder: whole layers are taken out of it"),
        ({"prune": {"sparsity": 0.5}}, r"bert@1 is an encoder: whole layers are taken out of it"),
        ({"target": "size<=1MB"}, r"bert@1 is an encoder: name layers to prune, and targets"),
        ({"prune": {"layers": 2}, "targets": [{"to": "w8a8"}]}, r"it is made into int8-onnx or fp32-onnx"),
    ],
)
def test_a_plan_that_is_no_encoders_is_refused_before_any_work(
    model_dir: Path, tmp_path: Path, said: dict[str, Any], expected: str
) -> None:
    settings = Settings(home=tmp_path / "home")
    import_model(settings, str(model_dir), name="bert")
    with pytest.raises(EverlearnError, match=expected):
        list(follow(settings, "bert", CompressPlan.model_validate(said)))
    assert len(Registry(settings).versions("bert")) == 1


@pytest.mark.parametrize(
    ("said", "param"),
    [
        ({"temperature": 1.0}, "temperature"),
        ({"divergence": "reverse"}, "divergence"),
        ({"quantize_to": "int4-onnx"}, "quantize_to"),
        ({"student": {"architecture": {"layers": 1, "hidden": 64, "heads": 4}}}, "student.architecture"),
        ({"student": {"model": "tiny"}}, "student.model"),
    ],
)
def test_options_of_predictions_are_refused_for_an_encoder(
    tiny_settings: Settings, corpus: Path, tmp_path: Path, said: dict[str, Any], param: str
) -> None:
    with pytest.raises(InvalidInput) as refused:
        distill(tiny_settings, recipe("encoder", corpus, **said), tmp_path / "run")
    assert refused.value.param == param and not (tmp_path / "run").exists()


def test_layers_that_share_their_weights_cannot_be_taken_out(
    model_dir: Path, texts: list[torch.Tensor]
) -> None:
    whole = load_encoder(model_dir)
    whole.body.config.num_hidden_layers = 12
    with pytest.raises(Unsupported, match="share their weights"):
        pruned(whole, Prune(layers=3), texts, silent)
