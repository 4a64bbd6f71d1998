"""Checks a machine and an installation; imports no heavy library to do so."""

from __future__ import annotations

import os
import platform
import shutil
import socket
import sys
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import Literal

from everlearn.cpu_features import instructions
from everlearn.errors import EverlearnError
from everlearn.memory import physical_bytes
from everlearn.settings import Settings, without_password

Verdict = Literal["ok", "note", "bad"]

MIN_DISK_BYTES = 2 * 1000**3
MIN_MEMORY_BYTES = 2 * 1000**3
PACKAGES = {
    "everlearn": "this program",
    "fastapi": "serve",
    "uvicorn": "serve",
    "onnxruntime": "serve",
    "tokenizers": "serve",
    "llguidance": "serve",
    "onnx": "serve, compress",
    "onnxruntime-genai": "compress",
    "torch": "import, compress",
    "transformers": "import, compress",
}


@dataclass(frozen=True)
class Finding:
    """``bad`` will not work, ``note`` is worth knowing."""

    verdict: Verdict
    check: str
    found: str


def examine(settings: Settings) -> list[Finding]:
    """Every check, in the order a person would look."""
    return [
        _python(),
        _machine(),
        _instructions(),
        _disk(settings),
        _memory(),
        _database(settings),
        _store(settings),
        _port(settings),
        *(_package(name, purpose) for name, purpose in PACKAGES.items()),
    ]


def _python() -> Finding:
    good = sys.version_info >= (3, 11)
    return Finding("ok" if good else "bad", "python", f"{platform.python_version()}, {sys.executable}")


def _machine() -> Finding:
    return Finding("ok", "machine", f"{platform.system()} {platform.machine()}, {os.cpu_count()} CPUs")


def _instructions() -> Finding:
    found = instructions()
    names = ", ".join(found.names) or "none that is known"
    return Finding("ok" if found.is_fast else "note", "instructions", f"{names}: {found.meaning}")


def _disk(settings: Settings) -> Finding:
    free = shutil.disk_usage(settings.directory("store")).free
    verdict: Verdict = "ok" if free >= MIN_DISK_BYTES else "note"
    return Finding(verdict, "disk", f"{free / 1000**3:.1f} GB free under {settings.home}")


def _memory() -> Finding:
    total = physical_bytes()
    verdict: Verdict = "ok" if total >= MIN_MEMORY_BYTES else "note"
    return Finding(verdict, "memory", f"{total / 1000**3:.1f} GB")


def _database(settings: Settings) -> Finding:
    from everlearn.registry.database import REPAIR, SCHEMA, flaw, open_database

    url = without_password(settings.resolved_database_url())
    try:
        if wrong := flaw(open_database(settings)):
            return Finding("bad", "database", f"{url} is damaged: {wrong}. {REPAIR}")
    except EverlearnError as error:
        return Finding("bad", "database", error.message)
    return Finding("ok", "database", f"{url}, schema {SCHEMA}")


def _store(settings: Settings) -> Finding:
    from everlearn.registry.blobs import open_store

    where = without_password(settings.store_url or str(settings.home / "store"))
    try:
        bundles = sum(1 for _ in open_store(settings).digests())
    except (EverlearnError, OSError) as error:
        return Finding("bad", "store", f"{where}: {error}")
    return Finding("ok", "store", f"{where}, {bundles} bundles")


def _port(settings: Settings) -> Finding:
    address = (settings.serve.host, settings.serve.port)
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
        except OSError as error:
            return Finding("note", "port", f"{address[0]}:{address[1]} cannot be had: {error.strerror}")
    return Finding("ok", "port", f"{address[0]}:{address[1]} is free")


def _package(name: str, purpose: str) -> Finding:
    try:
        return Finding("ok", name, version(name))
    except PackageNotFoundError:
        return Finding("note", name, f"not installed (needed to: {purpose})")
