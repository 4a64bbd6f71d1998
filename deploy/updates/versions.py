"""A version of the registry, published: a promotion and a rollback reach devices by the same command."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

from deploy.edge.targets import TARGETS
from deploy.updates.publisher import Publisher
from deploy.updates.release import Release
from everlearn.errors import InvalidInput
from everlearn.progress import Progress, silent
from everlearn.registry.registry import Registry
from everlearn.settings import Settings


def publish_version(
    publisher: Publisher,
    settings: Settings,
    ref: str,
    target: str,
    alias: str,
    share_ppm: int,
    progress: Progress = silent,
) -> Release:
    """Makes ``ref`` of the registry what an alias stands for; one that the channel holds already is not built again.

    Raises InvalidInput for a target that is none, what :func:`deploy.edge.build.build` raises, and :meth:`deploy.updates.publisher.Publisher.publish`.
    """
    from deploy.edge.build import build

    if target not in TARGETS:
        raise InvalidInput(f"--target {target!r} is none of {', '.join(TARGETS)}", param="target")
    version = Registry(settings).resolve(ref)
    if known := publisher.find(version.model, target, version.digest):
        return publisher.point(version.model, target, alias, known, share_ppm, progress)
    with TemporaryDirectory(dir=settings.directory("tmp")) as folder:
        build(settings, version.ref, target, Path(folder) / "edge", progress)
        return publisher.publish(Path(folder) / "edge", alias, share_ppm, progress)
