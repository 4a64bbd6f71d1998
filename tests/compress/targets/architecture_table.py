"""docs/supported-architectures.md, from what was measured: ``python -m tests.compress.targets.architecture_table`` writes it anew."""

from __future__ import annotations

import ast
import contextlib
import importlib.util
import io
import itertools
import re
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import LlamaConfig

from compress.export import decoder_request
from compress.measure.parent_divergence import measure_export
from compress.measure.parity import mean_divergence
from compress.recipe import CompressRecipe
from compress.targets import onnx_decoder
from compress.targets.architectures import VLLM, refuse_architecture
from everlearn.errors import Unsupported
from everlearn.importing.gguf_architectures import BY_ARCHITECTURE, write_config
from serve.engines.onnx.decoding.decoder import Decoder
from tests.support.architecture_rows import SHAPE, Row, working, write
from train.evaluate.held_out_text import WINDOW, held_out_text, token_windows
from train.evaluate.logits import torch_logits
from train.models.load import load_causal_lm

PAGE = Path(__file__).parents[3] / "docs" / "supported-architectures.md"
BEGIN, END = "<!-- table: measured -->", "<!-- end -->"
CHUNKS = (0, 90, 160, 220)
"""Where the engine's prompts are cut; what follows is decoded token by token, beside another text."""

REFUSED: dict[str, dict[str, Any]] = {
    "LlamaForCausalLM, heads of 18": LlamaConfig(**SHAPE | {"head_dim": 18}).to_dict(),
    "LlamaForCausalLM, heads of 24": LlamaConfig(**SHAPE | {"head_dim": 24}).to_dict(),
    "LlamaForCausalLM, quick_gelu": LlamaConfig(**SHAPE | {"hidden_act": "quick_gelu"}).to_dict(),
    "PhiForCausalLM, qk_layernorm": {"model_type": "phi", "head_dim": 32, "qk_layernorm": True},
    "PhiForCausalLM, 8 numbers of a head turned": {"model_type": "phi", "hidden_size": 64, "num_attention_heads": 4},
    "Gemma3ForCausalLM, both ways": {"model_type": "gemma3_text", "use_bidirectional_attention": True},
    "Gemma3ForCausalLM, attention capped": {"model_type": "gemma3_text", "attn_logit_softcapping": 50.0},
} | {
    name: {"model_type": "any"}
    for name in (
        "ApertusForCausalLM", "BloomForCausalLM", "Cohere2ForCausalLM", "CohereForCausalLM", "DeepseekV2ForCausalLM",
        "DeepseekV3ForCausalLM", "Exaone4ForCausalLM", "FalconForCausalLM", "GPT2LMHeadModel", "GPTJForCausalLM",
        "GPTNeoXForCausalLM", "Gemma3ForConditionalGeneration", "Glm4ForCausalLM", "GptOssForCausalLM",
        "GraniteMoeHybridForCausalLM", "HunYuanDenseV1ForCausalLM", "Lfm2ForCausalLM", "Mamba2ForCausalLM",
        "MixtralForCausalLM", "MptForCausalLM", "NemotronForCausalLM", "OPTForCausalLM", "Olmo2ForCausalLM",
        "Olmo3ForCausalLM", "OlmoForCausalLM", "OlmoeForCausalLM", "Qwen2MoeForCausalLM", "Qwen3MoeForCausalLM",
        "Qwen3NextForCausalLM", "StableLmForCausalLM", "Starcoder2ForCausalLM",
    )
}  # fmt: skip
"""What is refused, by architecture and variant: its config.json."""


def build_and_measure(model_dir: Path, made: Path, to: Any = "fp32-onnx") -> dict[str, float]:
    """Fills ``made`` from ``model_dir``; what ``compress.measure.parent_divergence`` says of it, on one window."""
    refuse_architecture(load_causal_lm(model_dir).config.to_dict(), "generate", to)
    made.mkdir()
    request = decoder_request(model_dir, made, CompressRecipe(to=to), None) | {"tokens": WINDOW}
    measured = {name: request[name] for name in ("tokens", "reference", "carried", "far")}
    with contextlib.redirect_stdout(io.StringIO()):
        onnx_decoder.build_onnx_decoder(request, lambda *_: None)
    return measure_export({**measured, "parent": str(model_dir), "export": str(made)}, lambda *_: None)


def served(model_dir: Path, made: Path) -> float:
    """How far the engine's answers are from torch, in nats per token: a prompt in chunks, then decoded among others."""
    engine = Decoder(made, rows=2, threads=1)
    length = min(engine.context, 240)
    ids = token_windows(model_dir / "tokenizer.json", held_out_text().text, length, length)[0]
    parts = [engine.score(0, ids[start:stop], start) for start, stop in itertools.pairwise(CHUNKS)]
    engine.prefill(1, ids[:50], 0)
    for at in range(CHUNKS[-1], length):
        step = at - CHUNKS[-1] + 50
        tokens, lengths = np.array([ids[at], ids[step]]), np.array([at + 1, step + 1])
        parts.append(engine.decode(tokens, lengths)[:1])
    answers = np.concatenate(parts)
    return mean_divergence(torch_logits(load_causal_lm(model_dir), ids[None]), iter([answers]), ids[None])


def figure(row: Row) -> float:
    """How far the graph is from torch in float32, nats per token."""
    with tempfile.TemporaryDirectory() as folder:
        model_dir = Path(folder) / "model"
        write(row.config, model_dir)
        return max(0.0, build_and_measure(model_dir, Path(folder) / "made")["graph"])


def reason(name: str) -> str:
    """Why ``name`` of :data:`REFUSED` is refused, in a cell of a table."""
    config = {
        "hidden_size": 64,
        "num_attention_heads": 4,
        **REFUSED[name],
        "architectures": [name.split(",")[0]],
    }
    try:
        refuse_architecture(config, "generate", "int4-onnx")
    except Unsupported as refused:
        return refused.message.partition(": ")[2].partition(". ")[0]
    raise AssertionError(f"{name} is not refused")


def line(name: str, onnx: str, config: Mapping[str, Any]) -> str:
    """A row of the table."""
    architecture, _, variant = name.partition(", ")
    vllm = "yes" if architecture in VLLM else "no"
    return f"| {' | '.join([f'`{architecture}`', variant, onnx, vllm, in_gguf(architecture, config)])} |"


def in_gguf(architecture: str, config: Mapping[str, Any]) -> str:
    """Whether ``everlearn gguf`` writes it."""
    try:
        write_config(BY_ARCHITECTURE[architecture], {**config, "architectures": [architecture]})
    except (KeyError, Unsupported):
        return "no"
    return "yes"


def lines(measure: Callable[[Row], float] = figure) -> Iterator[str]:
    """The table, measured here."""
    yield "| architecture | variant | ONNX: off by, nats per token in float32 | vLLM | GGUF |"
    yield "|---|---|---|---|---|"
    for row in working():
        yield line(row.name, f"{measure(row):.7f}", row.config.to_dict())
    for name, config in REFUSED.items():
        yield line(name, f"refused: {reason(name)}", config)


def written() -> list[str]:
    """The table as the page has it."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip().splitlines()


def is_of(line: str, name: str) -> bool:
    """Whether a line of the table is the row of this name."""
    architecture, _, variant = name.partition(", ")
    return line.startswith(f"| `{architecture}` | {variant} |")


def without_figures(table: list[str]) -> list[str]:
    return [re.sub(r"\| \d\.\d+ \|", "| works |", one) for one in table]


def figures(table: list[str]) -> list[float]:
    return [float(found[1]) for one in table if (found := re.search(r"\| (\d\.\d+) \|", one))]


def vllms() -> frozenset[str]:
    """Architectures that the installed vLLM serves, read from its source: importing it takes many seconds."""
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    file = Path(spec.origin).parent / "model_executor" / "models" / "registry.py"
    names: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            (target,) = node.targets
            if isinstance(target, ast.Name) and target.id in (
                "_TEXT_GENERATION_MODELS",
                "_MULTIMODAL_MODELS",
                "_TRANSFORMERS_SUPPORTED_MODELS",
            ):
                names |= {str(key.value) for key in node.value.keys if isinstance(key, ast.Constant)}
    return frozenset(names)


def main() -> None:
    """Writes the table of the page anew."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    after = rest.partition(END)[2]
    PAGE.write_text(f"{before}{BEGIN}\n{chr(10).join(lines())}\n{END}{after}")


if __name__ == "__main__":
    main()
