"""Complete a job's folder that an earlier version left, with what today's steps need."""

from __future__ import annotations

import json
import shutil
from typing import Any

from continual.queue.steps import Steps
from train.launch import RUN
from train.runs.legacy_run_folder import made_of

CARD_SCHEMA = 2
"""Of ``train.data.card.DataCard``."""


def take_up(steps: Steps) -> bool:
    """Completes the folder of a job that was begun before the gate remembered best scores; False for any other.

    Data, replay and training stay as they are. What was scored is scored anew, since other documents are measured
    now, and a training run without a checkpoint begins anew.
    """
    replay = steps.find("replay")
    if replay is not None and "memory" in replay.result:
        return False
    data = steps.find("data")
    if data is not None and data.result["schema_version"] < CARD_SCHEMA:
        steps.amend(data, _card(data.result))
    elif replay is None:
        return False
    run, request = steps.folder / "run", steps.folder / "run" / RUN
    if request.is_file() and made_of(run, json.loads(request.read_bytes())) is None:
        shutil.rmtree(run)
    for scores in steps.folder.glob("scores-*"):
        shutil.rmtree(scores)
    if replay is not None:
        domains = {card.parent.name for card in replay.directory.glob("*/*/card.json")}
        empty = {"domains": sorted(domains), "documents": {}, "memory": {"float": {}, "served": {}}}
        steps.amend(replay, replay.result | empty)
    return True


def _card(result: dict[str, Any]) -> dict[str, Any]:
    """A data card in today's form. Texts were always written in NFC and without spaces at line ends."""
    unknown = {"changed": {}, "ignored": {}, "cut": 0}
    sources = [
        source | unknown | {"forms": {"of a form not written down": source["read"]}}
        for source in result["sources"]
    ]
    options = result["options"] | {"normalize": True, "strip": True}
    return result | {"schema_version": CARD_SCHEMA, "options": options, "sources": sources, "skipped": {}}
