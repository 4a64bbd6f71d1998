"""Speed and memory of data preparation by its number of processes: `python -m benchmarks.train.data_preparation`.

A corpus is made from the machine's Debian manuals and documents, repeated with other numbers in them until it is as
large as asked, in eight files. Each run prepares it anew in processes of its own; the stores must be the same bytes.
Peak memory is the largest sum of the resident memory of all its processes, looked at every 50 ms, and that of
their anonymous memory, which leaves out mapped files. With --data-limit-mb, each
process may have so much private memory (RLIMIT_DATA): a run that needs more fails.
"""

import argparse
import contextlib
import gzip
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from functools import partial
from pathlib import Path

import psutil

from everlearn.processes.program import environment
from train.data.train_tokenizer import train_tokenizer

FOLDERS = ("/usr/share/man/man1", "/usr/share/man/man5", "/usr/share/man/man8", "/usr/share/doc")
FILES = 8
CHARS = 4000
NUMBER = re.compile(r"\d+")
PREPARE = (
    "import sys; from pathlib import Path; from train.data.options import DataOptions; "
    "from train.data.prepare import prepare; corpus, tokenizer, out, processes = sys.argv[1:]; "
    "card = prepare([Path(corpus)], Path(tokenizer), Path(out), DataOptions(max_tokens=512), processes=int(processes)); "
    "print(card.read, card.kept, card.train.tokens, card.train.store_sha256)"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--mb", type=float, nargs="+", default=[100, 500])
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--data-limit-mb", type=int, help="private memory of each process, at most")
    arguments = parser.parse_args()
    print(
        "| corpus | processes | MB/s | MB per CPU second | peak memory | anonymous | kept | tokens |\n|---|---|---|---|---|---|---|---|"
    )
    for size_mb in arguments.mb:
        with tempfile.TemporaryDirectory() as folder:
            corpus, tokenizer = Path(folder) / "corpus", Path(folder) / "tokenizer"
            size = write_corpus(corpus, size_mb * 1e6)
            train_tokenizer([next(corpus.iterdir())], 8000, tokenizer)
            stores: set[str] = set()
            for processes in arguments.processes:
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                out = Path(folder) / f"out{processes}"
                with private_memory(arguments.data_limit_mb):
                    seconds, peak, anonymous, said = measured(corpus, tokenizer, out, processes)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                read, kept, tokens, store = said.split()
                stores.add(store)
                mb = size / 1e6
                cells = (
                    f"{mb:.0f} MB",
                    processes,
                    f"{mb / seconds:.2f}",
                    f"{mb / cpu_s:.2f}",
                    f"{peak / 1e6:.0f} MB",
                    f"{anonymous / 1e6:.0f} MB",
                )
                print("|", " | ".join(map(str, (*cells, f"{kept} of {read}", tokens))), "|", flush=True)
            if len(stores) > 1:
                sys.exit("the number of processes changed the bytes")


@contextlib.contextmanager
def private_memory(limit_mb: int | None) -> Generator[None]:
    """Of the processes that begin within it, and of this one meanwhile."""
    before, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (limit_mb * 10**6 if limit_mb else before, hard))
    yield
    resource.setrlimit(resource.RLIMIT_DATA, (before, hard))


def write_corpus(corpus: Path, size: float) -> int:
    """Eight files of documents; how many bytes."""
    corpus.mkdir()
    written = 0
    files = [(corpus / f"{number}.jsonl").open("w", encoding="utf-8") for number in range(FILES)]
    for number, text in enumerate(texts()):
        line = json.dumps({"text": text}, ensure_ascii=False) + "\n"
        files[number % FILES].write(line)
        written += len(line.encode())
        if written >= size:
            break
    for file in files:
        file.close()
    return written


def texts() -> Iterator[str]:
    """Without end: at each pass the numbers are others, and each fifth line is left out."""
    known = [path for folder in FOLDERS for path in sorted(Path(folder).rglob("*")) if path.is_file()]
    for turn in range(10**6):
        for path in known:
            try:
                content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
                text = content.decode()
            except (OSError, UnicodeDecodeError, EOFError):
                continue
            if "\0" in text:
                continue
            lines = text.split("\n")
            said = "\n".join(line for at, line in enumerate(lines) if (at + turn) % 5)
            said = NUMBER.sub(partial(raised, by=turn), said)
            for begin in range(0, len(said), CHARS):
                yield said[begin : begin + CHARS]


def raised(number: re.Match[str], by: int) -> str:
    return str(int(number[0][:9]) + by)


def measured(corpus: Path, tokenizer: Path, out: Path, processes: int) -> tuple[float, int, int, str]:
    """Seconds, the peaks of resident and of anonymous memory in bytes, and what the run said."""
    began, peak, anonymous = time.monotonic(), 0, 0
    command = [sys.executable, "-c", PREPARE, corpus, tokenizer, out, str(processes)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment()) as running:
        own = psutil.Process(running.pid)
        while running.poll() is None:
            with contextlib.suppress(psutil.NoSuchProcess):
                processes_now = (own, *own.children(recursive=True))
                peak = max(peak, sum(each.memory_info().rss for each in processes_now))
                anonymous = max(anonymous, sum(anonymous_bytes(each.pid) for each in processes_now))
            time.sleep(0.05)
        said = running.communicate()[0]
    if running.returncode:
        sys.exit("data preparation failed")
    return time.monotonic() - began, peak, anonymous, said


def anonymous_bytes(pid: int) -> int:
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+) kB", status)
    return int(found[1]) * 1024 if found else 0


if __name__ == "__main__":
    main()
