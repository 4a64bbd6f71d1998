"""A served model's answers become what another model learns."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from tests.e2e.conftest import Served
from tests.support.serve.supervised import Supervised
from train.data.augmenting.answers import Asking
from train.data.augmenting.paraphrase import paraphrase
from train.data.reading.read import read_examples

ASKED = ("What is the capital of France?", "Say hello.", "What is two and two?")


def test_a_served_models_answers_are_kept_as_it_gave_them(
    served: Served, new_key: Callable[..., str], tmp_path: Path
) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": text}) + "\n" for text in ASKED))
    command = [sys.executable, "-m", "everlearn", "answers", str(prompts), str(out), "--json"]
    where = ["--url", str(served.client.base_url), "--model", served.model, "--max-tokens", "128"]
    environment = {"EVERLEARN_HOME": str(tmp_path / "home"), "TEACHER_KEY": new_key("teacher"), "PATH": ""}
    asking = [*command, *where, "--key-env", "TEACHER_KEY", "--at-once", "1"]
    told = json.loads(subprocess.run(asking, env=environment, capture_output=True, check=True).stdout)
    assert told["answers"] + told["cut"] == len(ASKED) and told["answers"] >= 1
    answers = {
        one["messages"][0]["content"]: one["messages"][1]["content"] for one in map(json.loads, out.open())
    }
    for question, answer in answers.items():
        said = served.chat([{"role": "user", "content": question}], max_tokens=128)
        assert answer == said.choices[0].message.content
    assert len(list(read_examples(out))) == told["answers"]


FEW = [
    "The striker scored twice before the break and the home side won the match.",
    "Shares of the bank fell after it said that profits would be lower this year.",
    "The new film tells the story of a fisherman and his daughter.",
]


def test_a_served_model_says_texts_in_other_words(server: Supervised, key: str, tmp_path: Path) -> None:
    (tmp_path / "few.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in FEW))
    asking = Asking(f"{server.url}/v1", "smollm2", key, samples=2, temperature=0.5, max_tokens=64)
    made = paraphrase(tmp_path / "few.jsonl", tmp_path / "more.jsonl", asking)
    written = [json.loads(line)["text"] for line in (tmp_path / "more.jsonl").open()]
    assert made.read == 3
    assert made.kept + made.left_out.total() == 6
    assert made.kept == len(written) == len(set(written)) > 0
    assert not set(written) & set(FEW)
