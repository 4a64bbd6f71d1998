"""Which program serves a version: the ONNX engine, or vLLM where it is installed."""

from importlib.util import find_spec

from everlearn.errors import Unsupported
from everlearn.registry.registry import Version
from everlearn.settings import Settings
from serve.child import python

ONNX_FORMATS = frozenset({"onnx-genai", "onnx"})
VLLM_FORMATS = frozenset({"safetensors", "compressed-tensors"})

INSTALL_VLLM = (
    "vLLM is not installed here: `make install-vllm` installs it; "
    "`everlearn compress {model} --to int4-onnx` makes a version that the ONNX engine serves"
)


def program(version: Version, settings: Settings) -> list[str]:
    """The command line of the engine that serves `version`; --bundle, --model, --version and --uds follow it.

    Raises Unsupported where no engine can: it says which one is missing, or what to do instead.
    """
    kind = kind_of(version)
    if kind == "onnx":
        return python("serve.engines.onnx")
    if version.task != "generate":
        raise Unsupported(
            f"{version.ref} is an encoder; compress it with --to int8-onnx and the ONNX engine serves it",
            param="model",
        )
    if settings.serve.engine_of(version.model) == "onnx":
        raise Unsupported(
            f"{version.ref} is {version.format}, and the setting serve.engine allows the ONNX engine only",
            param="model",
        )
    if find_spec("vllm") is None:
        raise Unsupported(
            f"{version.ref} is {version.format}. {INSTALL_VLLM.format(model=version.model)}", param="model"
        )
    return python("serve.engines.vllm")


def kind_of(version: Version) -> str:
    """ "onnx" or "vllm": the kind of engine that reads this version's format."""
    return "onnx" if version.format in ONNX_FORMATS else "vllm"
