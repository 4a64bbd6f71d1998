"""Faults that other trainers had, each with the smallest input that shows it.

Beside these: packed documents kept apart, in both attentions and modes (test_fitness.py); the gradient however a step is
cut (test_loop.py); ranks that share validation rows (test_parallel.py); checkpoints of other options (test_resume.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from everlearn.errors import ConfigError, InvalidInput
from tests.support.processes import in_ranks
from tests.support.tiny_models import tiny_config
from tests.train.conftest import run
from train.data.packing import Packer
from train.data.store import Example, write_store
from train.data.tokenize import Tokens
from train.models.build import build_model, refuse_misfit
from train.models.load import load_causal_lm
from train.models.save import write_model
from train.objectives.causal import CausalLM, next_token_validation
from train.optim import adamw
from train.recipe import Optimizer, TrainRecipe, Tune
from train.tuning.lora import add_adapters

WORDS = 64


def uneven() -> list[Example]:
    """Rows of 64 tokens with 2 or 63 targets, in turn."""
    rng = np.random.default_rng(0)
    ids = [rng.integers(3, 500, size=WORDS).astype(np.int32) for _ in range(8)]
    return [Example(each, np.arange(WORDS) >= (WORDS - 2 if n % 2 else 1)) for n, each in enumerate(ids)]


@pytest.fixture(scope="module")
def uneven_recipe(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One step over eight rows; five rows are held out."""
    folder = tmp_path_factory.mktemp("uneven")
    tokens = Tokens(base)
    made = {"tokenizer_sha256": tokens.sha256, "vocab_size": tokens.vocab_size}
    write_store(folder / "train", uneven(), **made)
    write_store(folder / "held", uneven()[:5], **made)
    return {
        "data": {"store": str(folder / "train"), "held_store": str(folder / "held")},
        "sequence_tokens": WORDS,
        "batch_tokens": WORDS * 8,
        "micro_batch": 1,
        "steps": 1,
        "optimizer": {"lr": 1.0, "eps": 1.0, "weight_decay": 0, "clip": 0},
        "schedule": {"warmup_fraction": 0},
        "dtype": "float32",
        "threads": 1,
    }


@pytest.fixture(scope="module")
def one_batch(base: Path, uneven_recipe: dict[str, Any]) -> dict[str, torch.Tensor]:
    """The gradient of all eight rows at once, by torch's own mean."""
    model = LlamaForCausalLM.from_pretrained(base)
    packer = Packer(uneven(), WORDS, 0)
    batch = {key: torch.as_tensor(value) for key, value in packer.batch(0, 8).items()}
    logits = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
    torch.nn.functional.cross_entropy(
        logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten()
    ).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def step_in_group(
    recipe: dict[str, Any], base: Path, run_dir: Path
) -> tuple[dict[str, Any], float, float | None]:
    """One step, in a rank: how far each weight moved (rank 0); the gradient's norm; the held-out loss before."""
    from train.loop import fit
    from train.parallel.group import joined
    from train.run import gather, open_stores

    options = TrainRecipe.model_validate(recipe)
    norms: list[float] = []
    with joined(options.parallel) as group:
        train, held = open_stores(options, run_dir)
        assert held is not None
        model = build_model(options, base, base)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        packer, validate = Packer(train, WORDS, 0), next_token_validation(Packer(held, WORDS, 0))
        on_step = lambda report: norms.append(report.grad_norm)
        result = fit(
            model,
            CausalLM(),
            packer,
            options,
            run_dir=run_dir,
            validate=validate,
            on_step=on_step,
            group=group,
        )
        after = gather(model, group)
        if not group.is_first:
            return {}, norms[0], result.held_nll_before
        state = after or {name: p.detach() for name, p in model.named_parameters()}
        moved = {name: (state[name] - before[name]).numpy() for name in before}
        return moved, norms[0], result.held_nll_before


@pytest.mark.parametrize(
    ("parallel", "ranks", "checkpointing"),
    [
        ("none", 1, False),
        ("none", 1, True),
        ("ddp", 2, False),
        ("ddp", 2, True),
        ("fsdp2", 2, False),
        ("fsdp2", 2, True),
        ("ddp", 4, False),
        ("fsdp2", 4, False),
    ],
)
def test_uneven_targets_give_the_gradient_of_one_batch(
    base: Path,
    tmp_path: Path,
    uneven_recipe: dict[str, Any],
    one_batch: dict[str, torch.Tensor],
    parallel: str,
    ranks: int,
    checkpointing: bool,
) -> None:
    """Accumulated or shared, recomputed or not.

    AdamW hides a gradient of the wrong size; with eps 1 its first step is g / (|g| + 1).
    """
    recipe = uneven_recipe | {"parallel": parallel, "ranks": ranks, "gradient_checkpointing": checkpointing}
    answers = in_ranks(ranks, step_in_group, recipe, base, tmp_path)
    norm = float(torch.nn.utils.get_total_norm(list(one_batch.values())))
    assert [said for _, said, _ in answers] == [pytest.approx(norm, rel=1e-5)] * ranks
    moved = answers[0][0]
    for name, gradient in one_batch.items():
        np.testing.assert_allclose(
            moved[name], -gradient / (gradient.abs() + 1), rtol=2e-3, atol=1e-6, err_msg=name
        )


def test_five_held_rows_on_two_ranks_are_each_counted_once(
    base: Path, tmp_path: Path, uneven_recipe: dict[str, Any]
) -> None:
    model = LlamaForCausalLM.from_pretrained(base).eval()
    batch = {key: torch.as_tensor(value) for key, value in Packer(uneven()[:5], WORDS, 0).batch(0, 5).items()}
    with torch.no_grad():
        loss, targets = CausalLM()(model, batch)
    recipe = uneven_recipe | {"parallel": "ddp", "ranks": 2, "micro_batch": 2}
    for _, _, measured in in_ranks(2, step_in_group, recipe, base, tmp_path):
        assert measured == pytest.approx(float(loss / targets), rel=1e-6)


def adapters_in_group(recipe: dict[str, Any], base: Path) -> dict[str, Any]:
    torch.manual_seed(int(torch.randint(1000, ())) + 1)
    model = build_model(TrainRecipe.model_validate(recipe), base, base)
    return {name: p.detach().numpy() for name, p in model.named_parameters() if "lora_A" in name}


def test_every_rank_draws_the_same_adapters(base: Path, uneven_recipe: dict[str, Any]) -> None:
    recipe = uneven_recipe | {"tune": "lora", "parallel": "ddp", "ranks": 2}
    one, other = in_ranks(2, adapters_in_group, recipe, base)
    assert one and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_target_that_equals_the_padding_is_learnt_and_padding_is_not() -> None:
    """Padding is known by place, never by id: many models pad with their end token, id 2 here or even 0."""
    for padding in (0, 2):
        ids = np.array([5, 6, 7, padding], dtype=np.int32)
        batch = Packer([Example(ids, np.arange(4) > 0)], 8, 0).batch(0, 1)
        assert batch["labels"].tolist() == [[-100, 6, 7, padding, -100, -100, -100, -100]]


def test_a_run_that_stops_in_its_second_epoch_goes_on_with_the_rows_that_remain() -> None:
    """One rank until step 5 of a data set of 7 rows, two ranks after: every row as often as without a stop."""
    packer = Packer(uneven()[:7], WORDS, 3)

    def rows(steps: range, ranks: int) -> list[int]:
        share = 2 // ranks
        return [
            n for step in steps for rank in range(ranks) for n in packer.row_numbers(step, share, rank, ranks)
        ]

    assert rows(range(5), 1) + rows(range(5, 14), 2) == rows(range(14), 1)
    assert sorted(rows(range(7), 1)) == sorted([*range(7), *range(7)])


def test_the_rate_goes_on_where_it_stopped(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    recipe |= {"steps": 8, "schedule": {"warmup_fraction": 0.5}}
    _, whole, _ = run(base, recipe, tmp_path / "whole")
    seen: list[int] = []
    _, first, _ = run(base, recipe, tmp_path / "half", should_stop=lambda: seen.append(0) or len(seen) == 3)
    _, second, _ = run(base, recipe, tmp_path / "half")
    assert [one.lr for one in [*first, *second]] == [one.lr for one in whole]


def test_small_steps_are_not_lost_in_bfloat16(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """A base stored in bfloat16, at a rate of 1e-5: nearly every weight moves, since float32 masters are kept."""
    half = tmp_path / "half"
    LlamaForCausalLM.from_pretrained(base).to(torch.bfloat16).save_pretrained(half)
    before = load_causal_lm(half)
    recipe |= {"steps": 3, "dtype": "bfloat16", "optimizer": {"lr": 1e-5}, "schedule": {"warmup_fraction": 0}}
    after, _, _ = run(half, recipe, tmp_path / "run", dtype=torch.float32)
    moved = total = 0
    for name, parameter in after.named_parameters():
        if "layers" in name and parameter.ndim == 2:
            moved += int((parameter != before.get_parameter(name)).sum())
            total += parameter.numel()
    assert moved / total > 0.99


@pytest.mark.parametrize("alpha", [4, 32])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_adapters_answer_as_beside_whatever_alpha_and_dtype(
    base: Path, tmp_path: Path, alpha: int, dtype: torch.dtype
) -> None:
    stored = tmp_path / "base"
    LlamaForCausalLM.from_pretrained(base).to(dtype).save_pretrained(stored)
    tune = Tune(method="lora", rank=8, alpha=alpha)
    model = add_adapters(load_causal_lm(stored), tune).eval()
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        beside = model(ids).logits
        recipe = TrainRecipe.model_validate({"data": {"store": "x"}, "tune": tune.model_dump()})
        write_model(model, None, recipe, stored, base, tmp_path / "model")
        merged = load_causal_lm(tmp_path / "model")(ids).logits
    limit = 1e-4 if dtype == torch.float32 else 0.02 * float(beside.abs().max())
    assert float((merged - beside).abs().max()) < limit


def test_adapters_of_tied_embeddings_are_refused(base: Path) -> None:
    """The output layer shares the matrix: merged, it would change what it had not learnt."""
    for name in ("embed_tokens", "lm_head"):
        with pytest.raises(ConfigError, match="tied"):
            add_adapters(load_causal_lm(base), Tune(method="lora", targets=("q_proj", name)))


def test_untied_embeddings_and_heads_take_adapters(base: Path, tmp_path: Path) -> None:
    config = LlamaConfig(**(tiny_config().to_dict() | {"tie_word_embeddings": False}))
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    tune = Tune(method="lora", rank=4, targets=("embed_tokens", "lm_head", "q_proj"))
    adapted = add_adapters(model, tune).eval()
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name or "lora_embedding" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        beside = adapted(ids).logits
        recipe = TrainRecipe.model_validate({"data": {"store": "x"}, "tune": tune.model_dump()})
        write_model(adapted, None, recipe, None, base, tmp_path / "model")
        merged = load_causal_lm(tmp_path / "model")(ids).logits
    torch.testing.assert_close(merged, beside, atol=1e-4, rtol=1e-4)


def test_decay_spares_every_vector_whatever_it_is_called() -> None:
    class OwnNorm(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gain = torch.nn.Parameter(torch.ones(4))
            self.layer_norm = torch.nn.LayerNorm(4)
            self.scale = torch.nn.Parameter(torch.tensor(1.0))
            self.proj = torch.nn.Linear(4, 4)

    optimizer = adamw(OwnNorm(), Optimizer(weight_decay=0.3))
    decays = [(p.ndim, group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(decays) == [(0, 0.0), *[(1, 0.0)] * 4, (2, 0.3)]


def test_a_padded_vocabulary_never_shrinks(base: Path, recipe: dict[str, Any], tmp_path: Path) -> None:
    """576 rows for a tokenizer of 512: trained and written, they are 576 still."""
    config = LlamaConfig(**(tiny_config().to_dict() | {"vocab_size": 576}))
    padded = tmp_path / "padded"
    LlamaForCausalLM(config).save_pretrained(padded)
    model, _, _ = run(padded, recipe | {"steps": 1}, tmp_path / "run")
    write_model(model, None, TrainRecipe.model_validate(recipe), padded, base, tmp_path / "model")
    written = load_causal_lm(tmp_path / "model")
    assert written.config.vocab_size == written.get_input_embeddings().num_embeddings == 576


def test_rows_that_no_embedding_covers_are_refused_by_number(base: Path) -> None:
    model = load_causal_lm(base)
    recipe = TrainRecipe.model_validate(
        {"data": {"store": "x"}, "sequence_tokens": 2048, "batch_tokens": 2048}
    )
    with pytest.raises(ConfigError, match="sequence_tokens is 2048, and the model reads at most 1024"):
        refuse_misfit(model, recipe, 512)
    short = TrainRecipe.model_validate({"data": {"store": "x"}})
    with pytest.raises(InvalidInput, match="ids up to 520, and the model's embedding 512 rows"):
        refuse_misfit(model, short, 521)
    refuse_misfit(model, short, 512)


def test_a_prompt_that_fills_its_row_costs_nothing_and_gives_no_nan(
    base: Path, recipe: dict[str, Any], tmp_path: Path
) -> None:
    """Half of the steps see no target at all."""
    tokens = Tokens(base)
    silent = [Example(example.ids, np.zeros(WORDS, dtype=np.bool_)) for example in uneven()]
    store = tmp_path / "store"
    write_store(
        store, silent[:7] + uneven()[:1], tokenizer_sha256=tokens.sha256, vocab_size=tokens.vocab_size
    )
    recipe |= {"batch_tokens": WORDS, "steps": 8}
    recipe["data"] = {"store": str(store), "held_store": recipe["data"]["held_store"]}
    model, reports, result = run(base, recipe, tmp_path / "run")
    assert result.finished and sum(report.loss == 0 for report in reports) == 7
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
