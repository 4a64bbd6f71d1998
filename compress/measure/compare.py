"""``everlearn compare A B…``: what each costs beside the first, on the same texts, on the engines that run them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from compress.measure.parent_divergence import keep_logits
from compress.measure.quality import TOKENS_PER_TEXT, Quality, qualities, windows_of, word_starts
from compress.quantize.methods import targets_with_a_choice
from everlearn.bundles.tasks import TASK_WORDS
from everlearn.errors import InvalidInput, NotFound
from everlearn.processes.child import answer, run_child
from everlearn.progress import Progress, silent
from everlearn.registry.records import Version
from everlearn.registry.registry import Registry
from everlearn.settings import Settings
from train.evaluate.held_out_text import held_out_text
from train.evaluate.logits import onnx_logits, torch_logits
from train.models.load import load_causal_lm

if TYPE_CHECKING:
    import numpy as np

PROMPTS = (
    "What is the capital of France?",
    "Write one sentence about the sea.",
    "How many days has a week?",
)
ANSWER_TOKENS = 32


@dataclass(frozen=True)
class Compared:
    """One version beside the first. ``quality`` by text; ``speed`` of ``compress.measure.speed``, empty where not asked for."""

    ref: str
    made: str
    size_bytes: int
    quality: Mapping[str, Quality]
    speed: Mapping[str, Any] = field(default_factory=dict)

    def mean(self, name: str) -> float:
        """Over the texts, of a figure of ``Quality``."""
        return sum(getattr(one, name) for one in self.quality.values()) / len(self.quality)

    @property
    def accuracy(self) -> float:
        """Words right, of all texts' words."""
        return sum(one.right for one in self.quality.values()) / self.words

    @property
    def words(self) -> int:
        return sum(one.words for one in self.quality.values())

    @property
    def flips(self) -> float:
        """Share of words right here and wrong at the first, or the other way round."""
        return sum(one.flips for one in self.quality.values()) / self.words


def compare(
    settings: Settings,
    refs: Sequence[str],
    texts: Sequence[Path] = (),
    *,
    tokens: int = TOKENS_PER_TEXT,
    speed: bool = True,
    progress: Progress = silent,
) -> list[Compared]:
    """Each of ``refs`` beside the first one, on the shipped held-out text and ``texts``.

    Raises NotFound, InvalidInput where one is no decoder, or splits text otherwise than the first.
    """
    registry = Registry(settings)
    versions = [registry.resolve(ref) for ref in refs]
    for version in versions:
        if version.task != "generate":
            raise InvalidInput(
                f"{version.ref} is {TASK_WORDS[version.task]}; decoders are compared here", param="ref"
            )
    places = [registry.path(version) for version in versions]
    refuse_other_tokens(versions, places)
    with tempfile.TemporaryDirectory(dir=settings.directory("tmp")) as folder:
        request = {
            "models": [
                {"directory": str(place), "format": one.format}
                for one, place in zip(versions, places, strict=True)
            ],
            "texts": {"jargon": held_out_text().text} | read_texts(texts),
            "tokens": tokens,
            "scratch": folder,
        }
        found = run_child("compress.measure.compare", request, progress)["qualities"]
    compared: list[Compared] = []
    for version, place, measured in zip(versions, places, found, strict=True):
        compared.append(
            Compared(
                version.ref,
                how_made(version),
                version.manifest.size_bytes,
                {name: Quality(**one) for name, one in measured.items()},
                speed_of(place, version.format, progress) if speed else {},
            )
        )
    return compared


def how_made(version: Version) -> str:
    """In a word or two, as a reader of a table would ask: ``int4-onnx gptq``, ``pruned``, ``distilled``."""
    recipe = version.manifest.recipe
    if "export" in recipe:
        to, weights = recipe["export"]["to"], recipe["export"].get("weights", "rtn")
        return f"{to} {weights}" if to in targets_with_a_choice() else to
    known = {"prune": "pruned", "distill": "distilled", "train": "trained"}
    return next((word for key, word in known.items() if key in recipe), version.format)


def speed_of(directory: Path, format: str, progress: Progress = silent) -> dict[str, Any]:
    """``compress.measure.speed`` on all cores, with the answers to :data:`PROMPTS`."""
    request = {
        "directory": str(directory),
        "format": format,
        "threads": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        "prompts": [as_prompt(directory, prompt) for prompt in PROMPTS],
        "new_tokens": ANSWER_TOKENS,
    }
    return run_child("compress.measure.speed", request, progress)


def as_prompt(directory: Path, prompt: str) -> str:
    """The prompt as the model's chat template has it; as it is where there is none."""
    from everlearn.chat.template import sandbox, template_source, token_names

    template = template_source(directory)
    if template is None:
        return prompt
    messages = [{"role": "user", "content": prompt}]
    return (
        sandbox()
        .from_string(template)
        .render(messages=messages, add_generation_prompt=True, **token_names(directory))
    )


def read_texts(paths: Sequence[Path]) -> dict[str, str]:
    """The files' texts by name. Raises NotFound, InvalidInput for one that is not UTF-8."""
    found: dict[str, str] = {}
    for path in paths:
        try:
            found[path.stem] = path.read_text(encoding="utf-8")
        except OSError as error:
            raise NotFound(f"the text {path}: {error.strerror}", param="text") from None
        except UnicodeDecodeError as error:
            raise InvalidInput(f"the text {path} is not UTF-8: {error}", param="text") from None
    return found


def refuse_other_tokens(versions: Sequence[Version], places: Sequence[Path]) -> None:
    """Per-token metrics cannot be compared between models that split text into different tokens. Raises InvalidInput."""
    from tokenizers import Tokenizer

    first = Tokenizer.from_file(str(places[0] / "tokenizer.json")).get_vocab()
    for version, place in zip(versions[1:], places[1:], strict=True):
        if Tokenizer.from_file(str(place / "tokenizer.json")).get_vocab() != first:
            raise InvalidInput(
                f"{version.ref} and {versions[0].ref} have different tokenizers: per-token metrics cannot be compared",
                param="ref",
            )


def measure_all(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """The child: each model's :class:`Quality` by text, the first being the reference."""
    import numpy as np

    first, *_ = request["models"]
    tokenizer_file = Path(first["directory"]) / "tokenizer.json"
    windows = windows_of(tokenizer_file, request["texts"], request["tokens"])
    starts = word_starts(tokenizer_file)
    whole = np.concatenate(list(windows.values()))
    kept = Path(request["scratch"]) / "reference.npy"
    total, done = len(whole) * (len(request["models"]) + 1), 0

    def counted(logits: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
        nonlocal done
        for one in logits:
            done += 1
            progress("measuring", done / total)
            yield one

    reference = keep_logits(counted(logits_of(first, whole)), len(whole), kept)
    found: list[dict[str, Any]] = []
    for model in request["models"]:
        logits = counted(iter(reference) if model == first else logits_of(model, whole))
        measured = qualities(reference, logits, windows, starts)
        found.append({name: asdict(one) for name, one in measured.items()})
    return {"qualities": found}


def logits_of(model: Mapping[str, Any], windows: np.ndarray) -> Iterator[np.ndarray]:
    """Logits float32 (window, vocab) of each window, by the format's own engine, or torch."""
    directory = Path(model["directory"])
    if model["format"] == "onnx-genai":
        return onnx_logits(directory, windows)
    return torch_logits(load_causal_lm(directory), windows)


if __name__ == "__main__":
    answer(measure_all)
