"""Leave out, or mark, what a classifier of one's own calls harmful: a second pass over the collected documents.

Texts are judged in batches of like lengths, in windows of what the model reads at once: the first, the last and those in the
middle of long ones, of which the worst decides. Memory is that of the model and of one batch.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.progress import Progress
from train.data.cleaning.clean import said
from train.data.cleaning.options import HarmClassifier
from train.data.cleaning.samples import Samples
from train.data.collecting.collect import Collection, write_collection
from train.data.collecting.second_pass import model_sha256, next_name
from train.data.examples import RawExample
from train.data.options import DataOptions

if TYPE_CHECKING:
    from train.models.label_judge import LabelJudge

RULE = "harmful_classifier"
MARKED = f"marked_{RULE}"
AT_ONCE = 256
"""Documents that are sorted by length."""


def without_harmful(
    collected: Sequence[Collection],
    data: DataOptions,
    options: HarmClassifier,
    work: Path,
    progress: Progress,
) -> list[Collection]:
    """The collections anew; each in a folder of ``work`` that appears when it is whole. Raises InvalidInput for a model that
    is no classifier, or has no such label."""
    from train.models.label_judge import LabelJudge

    digest = model_sha256(options.model, "data.harmful.classifier.model")
    judge = LabelJudge(options.model, options.label)
    made: list[Collection] = []
    for number, each in enumerate(collected):
        progress(
            f"looking for what {options.model.name} calls {options.label}", 0.6 * number / len(collected)
        )
        made.append(_judged(each, judge, digest, data, options, work))
    return made


def _judged(
    collection: Collection,
    judge: LabelJudge,
    digest: str,
    data: DataOptions,
    options: HarmClassifier,
    work: Path,
) -> Collection:
    directory = work / next_name(collection, digest, options.model_dump(mode="json", exclude={"model"}))
    counts = json.loads(json.dumps({"marked": {}} | collection.counts))
    samples = Samples()
    samples.add(collection.samples)

    def told() -> dict[str, Any]:
        return {**counts, "samples": samples.all()}

    def examples() -> Iterator[RawExample]:
        documents = collection.documents()
        while some := list(islice(documents, AT_ONCE)):
            for document, score in zip(some, judge.scores([said(each.raw) for each in some]), strict=True):
                if score < options.threshold:
                    yield document.raw
                    continue
                if options.action == "drop":
                    samples.of(RULE, document.raw)
                    counts["dropped"][RULE] = counts["dropped"].get(RULE, 0) + 1
                    continue
                samples.of(MARKED, document.raw)
                counts["marked"][RULE] = counts["marked"].get(RULE, 0) + 1
                yield replace(document.raw, marks={"harmful": round(score, 4)})

    return write_collection(directory, examples(), told, data)
