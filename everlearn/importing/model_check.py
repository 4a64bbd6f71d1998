"""The child that ``everlearn.importing.weights`` runs: has transformers make a model and find its tensors, without their values.

It is the loader itself that says what is missing, so that every family is held against its own code.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from everlearn.bundles.tasks import AUTO_CLASSES, Task
from everlearn.errors import EverlearnError, InvalidInput
from everlearn.importing.loaded import refuse_differences
from everlearn.processes.child import answer
from everlearn.progress import Progress

MOST_SAID = 300
"""Characters of what transformers says."""


def check(request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
    """Raises InvalidInput naming the tensor, or saying what transformers has against config.json."""
    progress("comparing the weights with the model of config.json", None)
    directory, task = Path(request["directory"]), request["task"]
    try:
        compare(directory, task)
    except (EverlearnError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001 (whatever a model's code raises at what a file says)
        said = " ".join(f"{type(error).__name__}: {error}".split())[:MOST_SAID]
        raise InvalidInput(
            f"config.json: transformers makes no model of it: {said}", param="config.json"
        ) from None
    return {}


def compare(directory: Path, task: Task) -> None:
    """Raises InvalidInput naming a tensor that is missing, misshapen or left over."""
    import transformers
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()
    kind: Any = getattr(transformers, AUTO_CLASSES[task])
    model, info = kind.from_pretrained(
        directory,
        device_map="meta",  # no value is read
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    refuse_differences(
        info, encoder=model if task == "embed" else None, head=task not in ("generate", "embed")
    )


if __name__ == "__main__":
    answer(check)
