"""Make ``installation.tar.xz`` again, with the code of commit c65ca05.

    git worktree add /tmp/c65ca05 c65ca05
    python tests/support/made_by_c65ca05/make.py /tmp/c65ca05 tests/support/made_by_c65ca05/installation.tar.xz

Everything is made by that commit's own commands: a tiny model imported and compressed, taught by a job over the
API, a job that its gate refused, one cancelled, one that was training when its worker was killed, one that waits;
a finished training run, and one that was killed. ``expected.json`` holds what the commands of c65ca05 printed of
it ("HOME" for the folder), and how the two killed runs ended where that code went on with them itself.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

PORT = 8765
JOB: dict[str, Any] = {
    "epochs": 2,
    "lr": 3e-3,
    "batch_tokens": 256,
    "sequence_tokens": 64,
    "micro_batch": 4,
    "held_fraction": 0.2,
    "dtype": "float32",
    "threads": 1,
    "replay": {"held_tokens": 1024, "share": 0.5, "base": 0.5, "buffer_tokens": 1500},
    "generation": {"tokens": 512, "sample_tokens": 32, "batch": 8},
    "gate": {"max_forgetting": 1.0, "min_gain": 0.01, "resamples": 200},
    "checkpoint_every_s": 0.2,
}
RUN = """\
base: tiny@1
sequence_tokens: 64
batch_tokens: 256
micro_batch: 4
steps: STEPS
dtype: float32
threads: 1
optimizer: {lr: 3.0e-3}
checkpoint: {every_steps: 20, keep: 1}
seed: SEED
data: {train: [sea.jsonl], held_fraction: 0.2}
"""
CHAT: list[dict[str, str]] = [{"role": "user", "content": "the harbour sells"}]
TEXT = "the lamp carries a slow river"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
NOUNS = [
    "harbour",
    "lamp",
    "river",
    "stone",
    "garden",
    "letter",
    "winter",
    "engine",
    "ladder",
    "window",
    "bridge",
    "orchard",
]
VERBS = [
    "sells",
    "carries",
    "opens",
    "follows",
    "repairs",
    "counts",
    "paints",
    "answers",
    "borrows",
    "measures",
]
KINDS = ["slow", "red", "hollow", "early", "patient", "broken", "salted", "northern", "quiet", "narrow"]


def main(checkout: Path, target: Path) -> None:
    work = Path("/tmp/made-by-c65ca05")
    shutil.rmtree(work, ignore_errors=True)
    maker = Maker(checkout.absolute(), work)
    maker.make_model()
    maker.serve_and_teach()
    maker.train()
    maker.leave_jobs()
    shutil.copytree(maker.home, work / "packed" / "home", ignore=not_plain)
    shutil.copytree(work / "files", work / "packed" / "files")
    expected = maker.look() | maker.go_on()
    (work / "packed" / "expected.json").write_text(json.dumps(expected))
    pack(work / "packed", target)


class Maker:
    """The commands of the old code on ``work/home``."""

    def __init__(self, checkout: Path, work: Path) -> None:
        self.checkout, self.work, self.home = checkout, work, work / "home"
        (work / "files").mkdir(parents=True)
        self.environment = os.environ | {
            "PYTHONPATH": str(checkout),
            "EVERLEARN_HOME": str(self.home),
            "EVERLEARN_CONTINUAL__THREADS": "1",
            "EVERLEARN_CONTINUAL__NICE": "0",
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        self.secret = self.version = ""

    def make_model(self) -> None:
        write_llama(self.work / "model")
        self.run("import", str(self.work / "model"), "--name", "tiny")
        self.run("compress", "tiny", "--to", "int8-onnx")
        shutil.rmtree(self.work / "model")
        key = self.run("keys", "create", "made-for-this-test", "--tokens-per-month", "1000000", "--admin")
        self.secret = next(
            word for line in key.splitlines() for word in line.split() if word.startswith("el-")
        )

    def serve_and_teach(self) -> None:
        """A served answer, an upload and a job by the API, a job that its gate refuses."""
        server = self.start("serve", "tiny", "--port", str(PORT))
        try:
            wait_for(lambda: self.request("GET", "/ready") is not None, 120)
            file = self.upload("sea.jsonl", texts("sea", 60))
            wanted = {"model": "tiny", "training_file": file["id"], "everlearn": JOB}
            job = self.request("POST", "/v1/fine_tuning/jobs", wanted)
            self.wait_for_job(job["id"], "succeeded")
            self.answer = wait_for(self.ask_champion, 60, 0.2)
            refused = self.create("refused.jsonl", texts("refused", 40), gate=JOB["gate"] | {"min_gain": 9})
            self.wait_for_job(refused, "failed")
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)

    def ask_champion(self) -> Any:
        """What the version that the job made answers, once it serves."""
        asked = {"model": "tiny", "messages": CHAT, "max_tokens": 1, "temperature": 0}
        answer = self.request("POST", "/v1/chat/completions", asked | {"logprobs": True, "top_logprobs": 5})
        return answer if self.version == "tiny@4" else None

    def train(self) -> None:
        """A finished run, and one killed with SIGKILL after its first checkpoint."""
        (self.work / "files" / "sea.jsonl").write_text(texts("sea", 60))
        self.write_run("finished.yaml", 3, 1)
        self.run("train", str(self.work / "files" / "finished.yaml"))
        self.write_run("killed.yaml", 60, 2)
        before = set((self.home / "runs").iterdir())
        command = self.start("train", str(self.work / "files" / "killed.yaml"))
        found = wait_for(lambda: next(iter(set((self.home / "runs").iterdir()) - before), None), 60)
        wait_for(lambda: is_midway(found), 60, 0.001)
        command.kill()
        command.wait()
        self.killed_run = found.name

    def leave_jobs(self) -> None:
        """A job cancelled, one killed while it trained, one that waits."""
        cancelled = self.create("cancelled.jsonl", texts("cancelled", 40))
        self.run("jobs", "cancel", cancelled)
        self.killed_job = self.create("land.jsonl", texts("land", 60), epochs=4)
        time.sleep(0.1)
        self.waiting_job = self.create("sky.jsonl", texts("sky", 60))
        worker = self.start("worker")
        run = self.home / "jobs" / self.killed_job / "run"
        wait_for(lambda: is_midway(run), 120, 0.001)
        worker.kill()
        worker.wait()
        time.sleep(3)  # what it had started ends with it

    def look(self) -> dict[str, Any]:
        """What the commands print, and what the models answer."""
        said = {
            "secret": self.secret,
            "answer": self.answer,
            "chat": CHAT,
            "text": TEXT,
            "killed_job": self.killed_job,
            "waiting_job": self.waiting_job,
            "killed_run": self.killed_run,
        }
        looked_at = self.work / "looked-at"
        shutil.copytree(self.work / "packed" / "home", looked_at)
        there = self.environment | {"EVERLEARN_HOME": str(looked_at)}
        versions = [one["ref"] for one in json.loads(self.run("ls", "--json", env=there))]
        jobs = [job["id"] for job in json.loads(self.run("jobs", "ls", "--json", env=there))]
        month = time.strftime("%Y-%m", time.gmtime())
        commands = [
            ["ls"],
            *(["show", ref] for ref in versions),
            ["jobs", "ls"],
            *(["jobs", "show", job] for job in jobs),
            ["replay", "show", "tiny"],
            ["replay", "ls", "tiny"],
            ["keys", "ls"],
            ["usage", "--month", month],
            ["audit"],
        ]
        printed = [
            {
                "command": command,
                "printed": json.loads(
                    self.run(*command, "--json", env=there).replace(str(looked_at), "HOME")
                ),
            }
            for command in commands
        ]
        logits = json.loads(self.python(LOGITS, TEXT, env=there))
        return said | {"commands": printed, "logits": logits}

    def go_on(self) -> dict[str, Any]:
        """How the killed run and the killed job end where c65ca05 goes on with them."""
        self.run("train", str(self.work / "files" / "killed.yaml"))
        run = self.home / "runs" / self.killed_run
        made = json.loads((run / "registered.json").read_text())
        worker = self.start("worker")
        try:
            self.wait_for_job(self.killed_job, "succeeded")
        finally:
            worker.send_signal(signal.SIGTERM)
            worker.wait(60)
        versions = {one["ref"]: one["bundle"] for one in json.loads(self.run("ls", "--json"))}
        return {
            "machine": machine(),
            "run": {
                "ref": made["ref"],
                "weights": weights_of(versions[made["ref"]]),
                "losses": [
                    json.loads(line)["loss"] for line in (run / "steps.jsonl").read_text().splitlines()
                ],
            },
            "job": self.ended(versions, json.loads(self.run("jobs", "show", self.killed_job, "--json"))),
        }

    def ended(self, versions: dict[str, Any], job: dict[str, Any]) -> dict[str, Any]:
        """A job that succeeded: what its report says, and the sha256 of the weights that it trained."""
        parent = versions[job["result_model"]]["parent"]
        trained = next(bundle for bundle in versions.values() if bundle["digest"] == parent)
        return {"report": job["report"], "result": job["result_model"], "weights": weights_of(trained)}

    def run(self, *arguments: str, env: dict[str, str] | None = None) -> str:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "everlearn", *arguments],
            env=env or self.environment, cwd=self.work, check=False, capture_output=True, text=True,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"everlearn {' '.join(arguments)}:\n{done.stdout}\n{done.stderr}")
        return done.stdout

    def python(self, code: str, *arguments: str, env: dict[str, str] | None = None) -> str:
        return subprocess.run(
            [sys.executable, "-P", "-c", code, *arguments],
            env=env or self.environment, cwd=self.work, check=True, stdout=subprocess.PIPE, text=True,
        ).stdout  # fmt: skip

    def start(self, *arguments: str) -> subprocess.Popen[bytes]:
        with (self.work / "log.txt").open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-P", "-m", "everlearn", *arguments],
                env=self.environment, cwd=self.work, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
            )  # fmt: skip

    def create(self, name: str, content: str, **changed: Any) -> str:
        file, recipe = self.work / name, self.work / "job.yaml"
        file.write_text(content)
        recipe.write_text(json.dumps(JOB | changed))
        job = self.run("jobs", "create", str(file), "--model", "tiny", "--recipe", str(recipe)).strip()
        file.unlink()
        recipe.unlink()
        return job

    def wait_for_job(self, job: str, state: str) -> None:
        def over() -> bool:
            found = json.loads(self.run("jobs", "show", job, "--json"))
            return found["state"] in ("succeeded", "failed", "cancelled")

        wait_for(over, 180, 0.5)
        found = json.loads(self.run("jobs", "show", job, "--json"))
        if found["state"] != state:
            raise SystemExit(f"{job} is not {state}: {found}")

    def write_run(self, name: str, steps: int, seed: int) -> None:
        said = RUN.replace("STEPS", str(steps)).replace("SEED", str(seed))
        (self.work / "files" / name).write_text(said)

    def upload(self, name: str, content: str) -> dict[str, Any]:
        boundary = "a-boundary"
        parts = (
            f'--{boundary}\r\nContent-Disposition: form-data; name="purpose"\r\n\r\nfine-tune\r\n'
            f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
            f"Content-Type: application/octet-stream\r\n\r\n{content}\r\n--{boundary}--\r\n"
        )
        kind = f"multipart/form-data; boundary={boundary}"
        return self.request("POST", "/v1/files", parts.encode(), kind)

    def request(self, method: str, path: str, body: Any = None, kind: str = "application/json") -> Any:
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{PORT}{path}", data=data, method=method)
        request.add_header("authorization", f"Bearer {self.secret}")
        request.add_header("content-type", kind)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                self.version = response.headers["x-everlearn-version"]
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            if error.code == 503:
                return None
            raise SystemExit(f"{path}: {error.read().decode()}") from None
        except OSError:
            return None


LOGITS = """
import json, sys
import torch
from everlearn.registry import Registry
from everlearn.settings import load_settings
from tokenizers import Tokenizer
from train.evaluate import load_causal_lm
registry = Registry(load_settings())
path = registry.path(registry.resolve("tiny@1"))
ids = Tokenizer.from_file(str(path / "tokenizer.json")).encode(sys.argv[1]).ids
with torch.inference_mode():
    logits = load_causal_lm(path)(input_ids=torch.tensor([ids])).logits[0, -1]
print(json.dumps({"ids": ids, "last": [round(x, 5) for x in logits.tolist()]}))
"""


def machine() -> dict[str, Any]:
    """What decides, beside the code, which bits a training step gives."""
    cpu = {
        key.strip(): value.strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        for key, found, value in [line.partition(":")]
        if found
    }
    names = ("vendor_id", "cpu family", "model", "stepping", "flags")
    return {name: cpu.get(name) for name in names} | {"torch": version("torch")}


def texts(subject: str, count: int) -> str:
    """JSON lines of sentences, always the same."""
    draw = random.Random(subject)

    def sentence() -> str:
        return (
            f"the {draw.choice(KINDS)} {draw.choice(NOUNS)} {draw.choice(VERBS)} a {draw.choice(KINDS)} "
            f"{draw.choice(NOUNS)} of the {subject}"
        )

    return "".join(json.dumps({"text": ". ".join(sentence() for _ in range(3))}) + "\n" for _ in range(count))


def write_llama(directory: Path) -> None:
    """One layer with random weights, and a tokenizer of 288 tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=288,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([texts(subject, 100) for subject in ("sea", "land", "sky")], trainer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=288,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=16,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.08,
    )
    LlamaForCausalLM(config).eval().save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=special[1],
        eos_token=special[2],
        pad_token=special[2],
        chat_template=TEMPLATE,
    ).save_pretrained(directory)


def weights_of(bundle: dict[str, Any]) -> str:
    return bundle["files"]["model.safetensors"]["sha256"]


def is_midway(run: Path) -> bool:
    """Whether a run has a checkpoint, steps since, and is not writing another one: the archive stays small."""
    saved = [path.name for path in run.glob("checkpoints/*")]
    if len(saved) != 1 or not saved[0].startswith("step-"):
        return False
    return (run / "steps.jsonl").read_bytes().count(b"\n") > int(saved[0].removeprefix("step-")) + 2


def wait_for(found: Callable[[], Any], timeout_s: float, every_s: float = 0.01) -> Any:
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if value := found():
            return value
        time.sleep(every_s)
    raise SystemExit("waited in vain")


def not_plain(folder: str, names: list[str]) -> list[str]:
    """Sockets, which no archive holds."""
    return [name for name in names if not (Path(folder, name).is_file() or Path(folder, name).is_dir())]


def pack(folder: Path, target: Path) -> None:
    def of_nobody(info: tarfile.TarInfo) -> tarfile.TarInfo:
        info.uid = info.gid = 0
        info.uname = info.gname = ""
        return info

    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in sorted(folder.iterdir()):
            archive.add(path, path.name, filter=of_nobody)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
