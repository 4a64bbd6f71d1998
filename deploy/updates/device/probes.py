"""Whether this machine computes a version as it should: the probes of its edge.json, run by onnxruntime."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from deploy.edge.targets import FORMS, OUTPUTS, graphs_of
from deploy.updates.release import MANIFEST
from everlearn.errors import Corrupt, Unavailable


def refuse_other_numbers(folder: Path) -> None:
    """Raises Corrupt where a probe's numbers differ by more than the manifest's bound, or another token comes first.

    Where the two most likely tokens are no further apart than the bound, either may come first. Raises Unavailable
    where the version could not be run now, which may pass.
    """
    manifest = json.loads((folder / MANIFEST).read_bytes())
    if missing := {"probes", "bound", "form", "task", "graph"} - manifest.keys():
        raise Corrupt(
            f"version {manifest['version']} is refused: {MANIFEST} lacks {', '.join(sorted(missing))}"
        )
    probes, bound = manifest["probes"], manifest["bound"]
    for probe, said in zip(probes, computed(folder, manifest), strict=True):
        expected = probe.get("top_logits") or probe.get("embedding") or probe["logits"]
        difference = max(abs(one - other) for one, other in zip(said["values"], expected, strict=True))
        clear = "top_ids" in probe and len(expected) > 1 and expected[0] - expected[1] > bound
        if not difference <= bound or (clear and said["best"] != probe["top_ids"][0]):
            raise Corrupt(
                f"version {manifest['version']} is refused: this machine computes numbers {difference:.3g} from those of "
                f"its manifest, and {bound} is allowed"
            )


def computed(folder: Path, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What this machine says of each probe. Raises Unavailable where onnxruntime does not run the graph, or not now."""
    from deploy.edge.check.native_session import answer

    prompts = [
        {name: one[name] for name in ("token_ids", "type_ids", "answer_ids") if name in one}
        | {"ids": one.get("top_ids")}
        for one in manifest["probes"]
    ]
    form = FORMS.get(manifest["form"])
    request = {
        "graphs": [str(folder / name) for name in graphs_of(manifest["task"])], "task": manifest["task"],
        "session": dict(form.session) if form else {},
        "outputs": OUTPUTS.get(manifest["task"], ()), "shape": manifest["graph"], "context": 1, "prompts": prompts, "top": 8, "steps": 1,
    }  # fmt: skip
    try:
        return answer(request)["outputs"]
    except Exception as error:  # noqa: BLE001 (onnxruntime's errors share no other base)
        told = f"{type(error).__name__}: {str(error)[:300]}"
        raise Unavailable(
            f"version {manifest['version']} did not run here, and is tried again by the next update: {told}"
        ) from None
