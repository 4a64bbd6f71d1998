"""vLLM's own server, on a unix socket alone, behind `front.Front`.

It starts processes of its own. Python has them import this module first, since it is the program that runs; so
they can see to it that none of them outlives the one that started it.
"""

import argparse
import multiprocessing
import os
import threading
import time
from pathlib import Path


def main() -> None:
    """Load the bundle, then serve until SIGTERM or until the parent is gone."""
    parser = argparse.ArgumentParser(prog="serve.engines.vllm")
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--version", type=int, default=0)
    parser.add_argument("--uds", type=Path, required=True)
    arguments = parser.parse_args()

    from everlearn.bundles.bundle import open_bundle
    from everlearn.registry.registry import Registry
    from everlearn.settings import load_settings
    from serve.engines.parent import end_with_parent
    from serve.engines.vllm.machine import environment, flags

    end_with_parent()
    settings = load_settings()
    bundle = open_bundle(arguments.bundle)
    os.environ.update(environment(settings))
    os.environ.pop("VLLM_API_KEY", None)  # the gateway asks for keys; engines are behind it
    draft = None
    if settings.vllm.draft:
        registry = Registry(settings)
        draft = registry.path(registry.weights(settings.vllm.draft))
    run(flags(bundle.path, arguments.model, arguments.uds, settings, draft))


def run(flags: list[str]) -> None:
    """vLLM's server, with its own command line."""
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args(flags)
    validate_parsed_serve_args(arguments)
    uvloop.run(run_server(arguments))


def end_with_server() -> None:
    """In a process that vLLM started: end at once when the one that started it has ended, however it did."""

    def wait() -> None:
        while (server := multiprocessing.parent_process()) is None:  # until Python has set this process up
            time.sleep(0.1)
        server.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True, name="server").start()


if __name__ == "__mp_main__":
    end_with_server()

if __name__ == "__main__":
    main()
