"""The page around a model: everlearn_web, the runtime that package-lock.json pins, and the page for the model's task.

Everything lies in one folder with the model's own files, so any static server serves it; nothing is loaded from
elsewhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

from deploy.edge.web.packages import WEB, node_modules
from everlearn.bundles.durable import write_file
from everlearn.progress import Progress, silent
from everlearn.settings import Settings

PAGES: Mapping[str, tuple[str, ...]] = {"generate": ("chat",), "embed": ("notes", "notes_store")}
"""Of a task: the name of the page that shows what its models do, and the other scripts that it has."""
UPDATES = WEB.parents[1] / "updates" / "web"
"""How a page follows a channel of updates."""
SHARED = ("page.css", "start.js", "sw.js")
APP_FILES = "app_files.js"
VENDOR: Mapping[str, str] = {
    "jinja.js": "@huggingface/jinja/dist/index.js",
    "tokenizers.js": "@huggingface/tokenizers/dist/tokenizers.min.mjs",
    "fzstd.js": "fzstd/esm/index.mjs",
    **{f"noble/{name}.js": f"@noble/hashes/{name}.js" for name in ("sha2", "_md", "_u64", "utils")},
    "ort/ort.wasm.js": "onnxruntime-web/dist/ort.wasm.min.mjs",
    "ort/ort-wasm-simd-threaded.js": "onnxruntime-web/dist/ort-wasm-simd-threaded.mjs",
    "ort/ort-wasm-simd-threaded.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.wasm",
}
"""Files of npm packages and their names here: every server knows `.js`, and some serve `.mjs` as plain bytes."""
WEBGPU: Mapping[str, str] = {
    "ort/ort.webgpu.js": "onnxruntime-web/dist/ort.webgpu.min.mjs",
    "ort/ort-wasm-simd-threaded.asyncify.js": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.mjs",
    "ort/ort-wasm-simd-threaded.asyncify.wasm": "onnxruntime-web/dist/ort-wasm-simd-threaded.asyncify.wasm",
}
"""Kept by a browser once it has used them: 27 MB that one without WebGPU never needs."""


def write_site(directory: Path, task: str, settings: Settings, progress: Progress = silent) -> None:
    """Writes everlearn_web and the page of `task`, if it has one, into `directory`, beside edge.json.

    They are 18 MB, and 27 MB that WebGPU alone loads. Raises as `node_modules`.
    """
    scripts = [f"{name}.js" for name in PAGES.get(task, ())]
    modules = node_modules(settings, progress=progress)
    module = directory / "everlearn_web"
    shutil.copytree(WEB / "everlearn_web", module, dirs_exist_ok=True)
    shutil.copytree(UPDATES, module / "updates", dirs_exist_ok=True)
    for name, source in (*VENDOR.items(), *WEBGPU.items()):
        (module / "vendor" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(modules / source, module / "vendor" / name)
    if not scripts:
        return
    for name in (*SHARED, *scripts):
        shutil.copyfile(WEB / "pages" / name, directory / name)
    shutil.copyfile(WEB / "pages" / f"{PAGES[task][0]}.html", directory / "index.html")
    _write_app_files(directory, scripts)


def _write_app_files(directory: Path, scripts: list[str]) -> None:
    """What the service worker keeps, with the digests that it holds files to, under a name that changes with any of it."""
    later = [f"everlearn_web/vendor/{name}" for name in WEBGPU]
    module = (path for path in (directory / "everlearn_web").rglob("*") if path.is_file())
    inside = sorted(path.relative_to(directory).as_posix() for path in module)
    files = ["index.html", *scripts, *SHARED, *(path for path in inside if path not in later)]
    files.remove("sw.js")  # the browser keeps that itself
    app = {
        "files": {path: integrity(directory / path) for path in files},
        "later": {path: integrity(directory / path) for path in later},
    }
    app["files"]["./"] = app["files"]["index.html"]
    version = hashlib.sha256(json.dumps(app, sort_keys=True).encode()).hexdigest()[:16]
    text = f"const APP = {json.dumps({'version': version, **app}, sort_keys=True)};\n"
    write_file(directory / APP_FILES, text.encode())


def integrity(path: Path) -> str:
    """A file's digest as `fetch` and `<script>` take it (Subresource Integrity)."""
    return f"sha256-{base64.b64encode(hashlib.sha256(path.read_bytes()).digest()).decode()}"
