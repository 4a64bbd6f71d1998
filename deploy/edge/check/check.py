"""``everlearn deploy check DIR``: a folder's bytes, its operators, and what its runtime computes of the probes."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import onnx

from deploy.edge.check.operators import refuse_known, refuse_missing
from deploy.edge.check.sessions import Place, emulated_x64, place_for
from deploy.edge.manifest import MANIFEST, EdgeManifest, read_manifest, verify_files
from deploy.edge.probes import asked, refuse_difference, request_of
from deploy.edge.targets import TARGETS, graphs_of
from everlearn.errors import Corrupt, Unavailable, Unsupported
from everlearn.progress import Progress, silent
from everlearn.settings import Settings


@dataclass(frozen=True)
class Session:
    """What one runtime made of a folder. ``difference``: the largest from the probes. ``peak_bytes`` of its process."""

    on: str
    is_device: bool
    difference: float
    tokens_per_s: float
    peak_bytes: int


@dataclass(frozen=True)
class Checked:
    """``skipped``: what could not be run here, and why."""

    manifest: EdgeManifest
    sessions: list[Session]
    skipped: list[str]


def check(
    settings: Settings, directory: Path, arm64: Path | None = None, progress: Progress = silent
) -> Checked:
    """Raises Corrupt naming a file that changed, CannotRun naming operators, Differs where numbers are others."""
    manifest = read_manifest(directory)
    if manifest.target not in TARGETS:
        raise Corrupt(f"{directory / MANIFEST}: target {manifest.target!r} is none of {', '.join(TARGETS)}")
    progress("hashing the files", None)
    verify_files(directory, manifest)
    places, skipped = places_for(settings, manifest.target, arm64)
    sessions: list[Session] = []
    for place in places:
        progress(f"running on {place.on}", None)
        sessions.append(run(directory, manifest, place))
    return Checked(manifest, sessions, skipped)


def places_for(settings: Settings, target: str, arm64: Path | None) -> tuple[list[Place], list[str]]:
    """Every place that a target runs in here: of Linux on x86-64, a CPU without AVX2 as well."""
    places, skipped = [place_for(settings, target, arm64)], list[str]()
    if target == "linux-x64":
        try:
            places.append(emulated_x64())
        except Unavailable as why:
            skipped.append(f"a CPU without AVX2: {why.message}")
    if target in ("linux-arm64", "android", "ios") and not (arm64 or places[0].is_device):
        skipped.append("an arm64 CPU: name a folder with an arm64 Python and onnxruntime by --arm64")
    return places, skipped


def run(directory: Path, manifest: EdgeManifest, place: Place) -> Session:
    """Opens the folder in ``place``, and each of its operators where that fails. Raises CannotRun, Differs."""
    models = [onnx.load(str(directory / name), load_external_data=False) for name in graphs_of(manifest.task)]
    runtime, prompts = TARGETS[manifest.target].runtime, asked(manifest.probes)
    for model in models:
        refuse_known(model, runtime, str(directory))
    request = request_of(directory, manifest.task, manifest.form, manifest.graph, prompts)
    try:
        said = place.ask(request if place.is_device else request | {"steps": 1})
    except Unsupported:
        for model in models:
            refuse_missing(model, runtime, place, str(directory))
        raise
    difference = refuse_difference(said, manifest, place.on)
    return Session(place.on, place.is_device, difference, said["tokens_per_s"], said["peak_bytes"])
