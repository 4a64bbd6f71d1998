"""Training on labelled data: what it learns, what it says of it, and what may not matter: ranks, batches, padding."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from transformers import (
    AutoModel,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from everlearn.errors import ConfigError, InvalidInput
from tests.support.processes import in_ranks
from tests.support.tiny_encoders import write_masked_lm
from tests.train.objectives.labelled_runs import begin, losses, rank, recipe, run, write_data
from train.data.labelled.rows import LabelledRows
from train.data.store import Example, TokenStore, open_store, write_store
from train.errors import Stopped
from train.models.build import build_model
from train.models.heads import with_head
from train.objectives.classification import Classification, ClassJudge, class_weights
from train.objectives.embedding import Embedding
from train.objectives.labelled import sequence_logits
from train.recipe import Classification as ClassSettings
from train.recipe import Embedding as EmbeddingSettings
from train.recipe import TrainRecipe, validate_recipe
from train.runs.live_view import held_line

CLASSES: dict[str, Any] = {
    "classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
    "pair-scoring": AutoModelForSequenceClassification,
    "embedding": AutoModel,
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("encoder")
    write_masked_lm(directory)
    return directory


@pytest.fixture(scope="module")
def without_dropout(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Dropout depends on how rows are divided."""
    directory = tmp_path_factory.mktemp("still") / "encoder"
    shutil.copytree(encoder, directory)
    config = json.loads((directory / "config.json").read_text())
    config |= {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("labelled")
    write_data(folder)
    return folder


def batch_of(rows: LabelledRows, numbers: list[int]) -> dict[str, torch.Tensor]:
    return {key: torch.as_tensor(value) for key, value in rows.rows_of(numbers).items()}


def weights(folder: Path) -> str:
    return hashlib.sha256((folder / "model" / "model.safetensors").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("objective", "figures", "changes"),
    [
        ("classification", {"accuracy": 0.95, "macro_f1": 0.95}, {}),
        ("token-classification", {"span_f1": 0.9, "accuracy": 0.9}, {}),
        ("question-answering", {"exact_match": 0.7, "answer_f1": 0.7}, {"steps": 80}),
        ("pair-scoring", {"auc": 0.8}, {"steps": 100}),
        ("embedding", {"recall_at_1": 0.6}, {"steps": 80, "embedding": {"dimensions": [64, 16]}}),
    ],
)
def test_each_objective_learns_and_leaves_what_transformers_opens(
    encoder: Path,
    data: Path,
    objective: str,
    figures: dict[str, float],
    changes: dict[str, Any],
    tmp_path: Path,
) -> None:
    outcome = run(encoder, recipe(objective, data, **changes), tmp_path / "run")
    metrics = outcome["metrics"]
    assert metrics["held_nll"] < metrics["held_nll_before"]
    for name, least in figures.items():
        assert metrics[f"held_{name}"] >= least, metrics
        assert metrics[f"held_{name}_before"] < metrics[f"held_{name}"]
    model, info = CLASSES[objective].from_pretrained(tmp_path / "run" / "model", output_loading_info=True)
    assert not info["unexpected_keys"] and all("pooler" in key for key in info["missing_keys"])
    config = json.loads((tmp_path / "run" / "model" / "config.json").read_text())
    if objective == "classification":
        assert config["id2label"] == {"0": "business", "1": "sport"} and model.config.label2id["sport"] == 1
    if objective == "token-classification":
        assert set(config["id2label"].values()) == {"B-LOC", "B-PER", "I-LOC", "O"}
    if objective == "pair-scoring":
        assert model.config.num_labels == 1
    if objective == "embedding":
        folder = tmp_path / "run" / "model"
        assert [each["path"] for each in json.loads((folder / "modules.json").read_text())] == ["", "1_Pooling", "2_Normalize"]  # fmt: skip
        assert (
            json.loads((folder / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"] is True
        )


@pytest.mark.parametrize("objective", ["classification", "embedding"])
def test_a_stopped_run_goes_on_to_the_same_bits(
    encoder: Path, data: Path, objective: str, tmp_path: Path
) -> None:
    said = recipe(objective, data, steps=8, validation={"every_steps": 4})
    whole = run(encoder, said, tmp_path / "whole")
    with pytest.raises(Stopped):
        run(encoder, said, tmp_path / "stopped", stop_after=3)
    again = run(encoder, said, tmp_path / "stopped")
    assert weights(tmp_path / "whole") == weights(tmp_path / "stopped")
    timed = {"seconds", "tokens_per_s", "peak_memory_bytes", "train_loss"}
    assert {k: v for k, v in whole["metrics"].items() if k not in timed} == {
        k: v for k, v in again["metrics"].items() if k not in timed
    }
    steps = [json.loads(line) for line in (tmp_path / "stopped" / "steps.jsonl").open()]
    assert [each["step"] for each in steps] == list(range(1, 9)) and steps[3]["held"] and not steps[2]["held"]
    [name] = list(steps[3]["held"])[:1]
    assert held_line(steps[3]).startswith(f"step 4: {name.replace('_', ' ')} ")


@pytest.mark.parametrize("objective", ["classification", "token-classification", "question-answering", "pair-scoring", "embedding"])  # fmt: skip
def test_how_rows_are_divided_changes_no_gradient(
    without_dropout: Path, data: Path, objective: str, tmp_path: Path
) -> None:
    """Rows of other lengths at once, and padding, are of no account; nor are in-batch negatives in parts."""
    said = recipe(objective, data, steps=3, optimizer={"lr": 1e-3, "eps": 1e-4})
    for micro_batch in (16, 2):
        run(without_dropout, said | {"micro_batch": micro_batch}, tmp_path / str(micro_batch))
    assert losses(tmp_path / "16") == pytest.approx(losses(tmp_path / "2"), rel=2e-4)


@pytest.mark.parametrize("objective", ["embedding", "token-classification"])
def test_two_ranks_give_the_gradients_and_the_figures_of_one(
    without_dropout: Path, data: Path, objective: str, tmp_path: Path
) -> None:
    """Rows 17 and 19: negatives of the other rank count with their gradients, and each held-out row once."""
    said = recipe(objective, data, steps=3, optimizer={"lr": 1e-3, "eps": 1e-4})
    alone = run(without_dropout, said, tmp_path / "alone")["metrics"]
    begin(without_dropout, said | {"parallel": "ddp", "ranks": 2}, tmp_path / "ranks")
    in_ranks(2, rank, tmp_path / "ranks")
    together = json.loads((tmp_path / "ranks" / "outcome.json").read_bytes())["metrics"]
    assert losses(tmp_path / "ranks") == pytest.approx(losses(tmp_path / "alone"), rel=2e-4)
    held = {key: value for key, value in alone.items() if key.startswith("held_")}
    if objective == "embedding":  # in batches of other negatives
        held = {key: value for key, value in held.items() if "recall" in key}
    assert {key: together[key] for key in held} == pytest.approx(held, rel=1e-4)


def test_padding_is_told_by_length_also_where_its_id_is_the_end_token(base: Path, tmp_path: Path) -> None:
    """Row 4 of the trainers' faults: a decoder whose padding is its end token, and texts that hold it."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = with_head(base, "classify", ["a", "b"]).eval()
    end = model.config.pad_token_id
    assert end == model.config.eos_token_id
    texts = [[5, 6, end], [7, 8, 9, end, 11, 12, end, end], [3, 4]]
    examples = []
    for ids in texts:
        labels = np.full(len(ids), -100, dtype=np.int32)
        labels[0] = 1
        examples.append(Example(np.array(ids, dtype=np.int32), labels >= 0, labels, np.zeros_like(labels)))
    store = labelled_store(tmp_path / "store", examples)
    rows = LabelledRows(store, padding_id=end)
    with torch.no_grad():
        together = sequence_logits(model, batch_of(rows, [0, 1, 2]))
        states = [model.model(input_ids=torch.tensor([ids])).last_hidden_state[:, -1] for ids in texts]
        alone = model.score(torch.cat(states))
    assert torch.allclose(together, alone, atol=1e-5)


def labelled_store(path: Path, examples: list[Example]) -> TokenStore:
    write_store(
        path, examples, tokenizer_sha256="0" * 64, vocab_size=500, kind="classification", labels=("a", "b")
    )
    return open_store(path, verify=True)


def test_batches_are_pure_functions_of_their_number_and_hold_like_lengths(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    examples = []
    for _ in range(203):
        ids = drawn.integers(0, 500, int(drawn.integers(2, 60))).astype(np.int32)
        labels = np.full(len(ids), -100, dtype=np.int32)
        labels[0] = 0
        examples.append(Example(ids, labels >= 0, labels, np.zeros_like(labels)))
    store = labelled_store(tmp_path / "store", examples)
    rows = LabelledRows(store, step_rows=8, seed=7)
    seen = [[int(n) for n in rows.batch(step, 8)["document_ids"][:, 0]] for step in range(203)]
    for epoch in range(8):
        flat = [n for batch in seen for n in batch][epoch * 203 : (epoch + 1) * 203]
        assert sorted(flat) == list(range(203))
    assert sorted(seen[0]) != sorted(seen[26])
    fresh = LabelledRows(store, step_rows=8, seed=7)
    assert [int(n) for n in fresh.batch(91, 8)["document_ids"][:, 0]] == seen[91]
    shared = [int(n) for rank in (0, 1) for n in rows.batch(91, 4, rank, 2)["document_ids"][:, 0]]
    assert shared == seen[91]
    batch = rows.batch(5, 8)
    lengths = (batch["document_ids"] >= 0).sum(1)
    assert batch["input_ids"].shape[1] == lengths.max()
    spread = [np.ptp([len(examples[n]) for n in each]) for each in seen[:25]]
    assert np.mean(spread) < 15


def test_class_weights_are_those_of_torch_and_of_scikit_learn(encoder: Path, tmp_path: Path) -> None:
    from sklearn.utils.class_weight import compute_class_weight

    kinds = np.array([0] * 6 + [1] * 2)
    examples = []
    for n, kind in enumerate(kinds):
        labels = np.array([kind, -100, -100], dtype=np.int32)
        examples.append(
            Example(np.array([2, 20 + n, 3], dtype=np.int32), labels >= 0, labels, np.zeros_like(labels))
        )
    store = labelled_store(tmp_path / "store", examples)
    balanced = class_weights(ClassSettings(class_weights="balanced"), ("a", "b"), store)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx(
        compute_class_weight("balanced", classes=np.array([0, 1]), y=kinds)
    )
    with pytest.raises(ConfigError, match="names 'c', and the labels are a, b"):
        class_weights(ClassSettings(class_weights={"c": 2.0}), ("a", "b"), store)
    torch.manual_seed(0)
    model = with_head(encoder, "classify", ["a", "b"])
    batch = batch_of(LabelledRows(store), list(range(8)))
    loss, count = Classification(balanced)(model, batch)
    expected = functional.cross_entropy(
        sequence_logits(model, batch), torch.as_tensor(kinds), weight=balanced
    )
    assert float(loss / count) == pytest.approx(float(expected), rel=1e-5)


def test_in_batch_negatives_are_the_formula_of_sentence_transformers(encoder: Path, tmp_path: Path) -> None:
    """Equal positives, and positives of equal anchors, are no negatives; a missing negative is none."""
    torch.manual_seed(0)
    model = with_head(encoder, "embed", None).eval()
    texts = [
        ([20, 21], [30, 31], [40]),
        ([22], [32, 33, 34], None),
        ([20, 21], [35], None),
        ([23], [30, 31], [41]),
    ]
    examples = []
    for parts in texts:
        there = [(k, part) for k, part in enumerate(parts) if part]
        ids = np.concatenate([part for _, part in there]).astype(np.int32)
        labels = np.full(len(ids), -100, dtype=np.int32)
        labels[0] = 0
        segments = np.concatenate([np.full(len(part), k) for k, part in there]).astype(np.int32)
        examples.append(Example(ids, labels >= 0, labels, segments))
    rows = LabelledRows(labelled_store(tmp_path / "store", examples))
    objective = Embedding("mean", EmbeddingSettings(dimensions=(64, 16)), 2, has_negatives=True)
    loss, count = objective(model, batch_of(rows, [0, 1, 2, 3]))

    def embedded(ids: list[int]) -> torch.Tensor:
        return model(input_ids=torch.tensor([ids])).last_hidden_state.mean(1)[0]

    expected = torch.zeros(())
    for dim in (64, 16):
        anchors = [functional.normalize(embedded(a)[:dim], dim=0) for a, _, _ in texts]
        positives = [functional.normalize(embedded(p)[:dim], dim=0) for _, p, _ in texts]
        negatives = [functional.normalize(embedded(n)[:dim], dim=0) for _, _, n in texts if n]
        for i in range(4):
            others = [
                positives[j]
                for j in range(4)
                if j != i and texts[j][1] != texts[i][1] and texts[j][0] != texts[i][0]
            ]
            scores = torch.stack([positives[i], *others, *negatives]) @ anchors[i] * 20
            expected = expected + functional.cross_entropy(scores[None], torch.tensor([0]))
    assert count == 4 and float(loss) == pytest.approx(float(expected), rel=1e-4)


def test_figures_are_those_of_the_libraries() -> None:
    from scipy.stats import spearmanr
    from sklearn.metrics import f1_score, roc_auc_score

    from train.evaluate.answers import exact_and_f1
    from train.evaluate.labels import accuracy_and_f1, area_under_curve, rank_correlation, span_f1

    drawn = np.random.default_rng(0)
    gold, said = drawn.integers(0, 4, 200), drawn.integers(0, 5, 200)
    assert accuracy_and_f1(gold, said)["macro_f1"] == pytest.approx(f1_score(gold, said, average="macro"))
    right, scores = drawn.random(200) < 0.4, drawn.integers(0, 9, 200).astype(float)
    assert area_under_curve(right, scores) == pytest.approx(roc_auc_score(right, scores))
    assert rank_correlation(scores, gold.astype(float)) == pytest.approx(spearmanr(scores, gold).statistic)
    tags = [["B-PER", "I-PER", "O", "B-LOC"], ["I-ORG", "I-PER", "O"], ["O"]]
    found = [["B-PER", "O", "O", "B-LOC"], ["I-ORG", "B-PER", "I-PER"], ["B-LOC"]]
    # right: LOC of the first, ORG of the second; 5 are said and 4 are there
    assert span_f1(tags, found) == pytest.approx(
        {"span_precision": 2 / 5, "span_recall": 2 / 4, "span_f1": 4 / 9}
    )
    assert exact_and_f1(["The cat.", "", "big dog"], [["cat", "a dog"], [], ["dog"]]) == pytest.approx(
        {"exact_match": 2 / 3, "answer_f1": (2 + 2 / 3) / 3}
    )


def test_lora_trains_a_new_head_in_full_and_is_merged(encoder: Path, data: Path, tmp_path: Path) -> None:
    said = recipe(
        "classification", data, steps=30, tune={"method": "lora", "rank": 4}, optimizer={"lr": 5e-3}
    )
    model = build_model(validate_recipe(TrainRecipe, said | {"base": "x"}), encoder, encoder, ("a", "b"))
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert "classifier.weight" in trained and any("lora" in name for name in trained)
    assert not any(name.endswith("embeddings.weight") for name in trained)
    outcome = run(encoder, said, tmp_path / "run")
    assert outcome["metrics"]["held_accuracy"] > 0.9
    config = AutoModelForSequenceClassification.from_pretrained(tmp_path / "run" / "model")
    assert not any("lora" in name for name, _ in config.named_parameters())


def test_a_classifier_learns_other_labels_with_another_head(encoder: Path, tmp_path: Path) -> None:
    torch.manual_seed(0)
    with_head(encoder, "classify", ["a", "b", "c"]).save_pretrained(tmp_path / "three")
    model = with_head(tmp_path / "three", "classify", ["x", "y"], dropout=0.3)
    assert model.classifier.out_features == 2 and model.config.id2label == {0: "x", 1: "y"}
    assert model.config.hidden_dropout_prob == 0.3
    body = with_head(encoder, "token_classify", ["x"]).bert.embeddings.state_dict()
    assert all(torch.equal(tensor, model.bert.embeddings.state_dict()[name]) for name, tensor in body.items())


@pytest.mark.parametrize("objective", ["classification", "embedding"])
def test_a_model_from_scratch_learns(encoder: Path, data: Path, objective: str, tmp_path: Path) -> None:
    architecture = {"family": "bert", "layers": 1, "hidden": 32, "heads": 2, "context": 64, "vocab": 400}
    said = recipe(objective, data, steps=40, architecture=architecture, optimizer={"lr": 5e-3})
    outcome = run(None, said, tmp_path / "run", tokenizer=encoder)
    assert outcome["metrics"]["held_nll"] < outcome["metrics"]["held_nll_before"]
    CLASSES[objective].from_pretrained(tmp_path / "run" / "model")


def test_recipes_that_do_not_fit_their_data_are_refused(encoder: Path, data: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"data\.kind is chat, and objective: classification learns from classification"
    ):
        validate_recipe(TrainRecipe, recipe("classification", data, data={"train": ["x"], "kind": "chat"}))
    with pytest.raises(
        ConfigError, match=r"data\.kind is embedding, and objective: causal-lm learns from texts"
    ):
        validate_recipe(TrainRecipe, {"data": {"train": ["x"], "kind": "embedding"}})
    with pytest.raises(
        ConfigError, match="embedding sets up objective: embedding, and objective is pair-scoring"
    ):
        validate_recipe(TrainRecipe, recipe("pair-scoring", data, embedding={"scale": 10}))
    with pytest.raises(
        ConfigError, match=r"embedding\.dimensions has 128, and the model's embeddings have 64"
    ):
        run(encoder, recipe("embedding", data, embedding={"dimensions": [128]}), tmp_path / "wide")
    wrong = recipe("classification", data, data={"train": [str(data / "embedding.jsonl")]})
    with pytest.raises(
        InvalidInput, match=r'embedding\.jsonl:1: has "anchor", "positive".*Right would be "text" and "label"'
    ):
        run(encoder, wrong, tmp_path / "other")
    assert not (tmp_path / "other" / "data").exists()
    run(encoder, recipe("classification", data, steps=1), tmp_path / "made")
    stores = {"store": str(tmp_path / "made" / "data" / "train")}
    with pytest.raises(
        InvalidInput, match="the store holds classification, and objective: pair-scoring learns from"
    ):
        run(encoder, recipe("pair-scoring", data, data=stores), tmp_path / "store")


def test_labels_of_another_store_are_refused_by_name(encoder: Path, data: Path, tmp_path: Path) -> None:
    run(encoder, recipe("classification", data, steps=1), tmp_path / "one")
    other = (data / "classification.jsonl").read_text().replace('"sport"', '"sports"')
    (tmp_path / "classification.jsonl").write_text(other)
    run(encoder, recipe("classification", tmp_path, steps=1), tmp_path / "two")
    stores = {
        "store": str(tmp_path / "one" / "data" / "train"),
        "held_store": str(tmp_path / "two" / "data" / "held"),
    }
    with pytest.raises(InvalidInput, match=r"the two stores have other labels \(sport, sports\)"):
        run(encoder, recipe("classification", data, data=stores), tmp_path / "both")


def test_what_validation_says_is_of_every_row_once(encoder: Path, tmp_path: Path) -> None:
    """Row 19: five rows in batches of two."""
    examples = []
    for n in range(5):
        labels = np.array([n % 2, -100, -100], dtype=np.int32)
        examples.append(
            Example(np.array([2, 20 + n, 3], dtype=np.int32), labels >= 0, labels, np.zeros_like(labels))
        )
    rows = LabelledRows(labelled_store(tmp_path / "store", examples))
    torch.manual_seed(0)
    model, judge = with_head(encoder, "classify", ["a", "b"]).eval(), ClassJudge(2)
    said = []
    for step in range(3):
        batch = rows.batch(step, 2)
        batch["labels"][max(0, 5 - 2 * step) :] = -100
        tensors = {key: torch.as_tensor(value) for key, value in batch.items()}
        said.append(judge.predictions(model, tensors)[2])
    whole = judge.predictions(model, batch_of(rows, list(range(5))))[2]
    joined = torch.cat(said)
    assert len(joined) == 5 and judge.score(joined.numpy()) == judge.score(whole.numpy())
