"""One cleaning of a JSONL of texts, in a process of its own, for `benchmarks.train.data`; answers one line of JSON.

Runs in everlearn's environment, or in one of datatrove's own: neither imports the other.
"""

import json
import resource
import sys
import time
from collections.abc import Callable

SAME = {"quality": {"rules": ["gopher", "c4"]}, "personal": {"kinds": ["email", "ip"]}}
"""What datatrove's filters below do, too."""
ALL = {
    "encoding": {"form": "NFC"},
    "languages": {"keep": ["en"]},
    "quality": {"rules": ["gopher"], "advertisements": True},
    "personal": True,
}


def everlearn(options: dict) -> Callable[[str], bool]:
    from train.data.cleaning.cleaner import Cleaner
    from train.data.examples import Text
    from train.data.options import DataOptions

    cleaner = Cleaner(DataOptions.model_validate(options))
    return lambda text: cleaner.clean(Text(text)).example is not None


def datatrove() -> Callable[[str], bool]:
    """Gopher's and C4's filters and the masking of e-mail and IP addresses, with its defaults."""
    from datatrove.data import Document
    from datatrove.pipeline.filters import C4QualityFilter, GopherQualityFilter, GopherRepetitionFilter
    from datatrove.pipeline.formatters import PIIFormatter

    filters = (GopherRepetitionFilter(), GopherQualityFilter(), C4QualityFilter())
    masked = PIIFormatter()

    def clean(text: str) -> bool:
        document = Document(text=text, id="")
        for each in filters:
            answer = each.filter(document)
            if answer is not True and (not isinstance(answer, tuple) or not answer[0]):
                return False
        masked.format(document.text)
        return True

    return clean


WAYS = {
    "everlearn, the same rules": lambda: everlearn(SAME),
    "everlearn, all but lists": lambda: everlearn(ALL),
    "datatrove": datatrove,
}


def main(way: str, file: str) -> None:
    clean = WAYS[way]()
    clean("A text to begin with, that loads what is loaded once. " * 20)
    read = kept = size = 0
    begin = time.process_time()
    with open(file, encoding="utf-8") as lines:
        for line in lines:
            text = json.loads(line)["text"]
            read, size = read + 1, size + len(text.encode())
            kept += clean(text)
    seconds = time.process_time() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"read": read, "kept": kept, "size": size, "seconds": seconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main(*sys.argv[1:])
