"""The runner as a device's programs and administrators meet it, from the checkout, with tiny models."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import threading
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest

from tests.deploy.native.conftest import Running, changed, refused, running, started
from tests.support.serve.supervised import eventually

CHAT = {"model": "decoder", "temperature": 0, "messages": [{"role": "user", "content": "the cat"}]}
FOREIGN = (
    {"host": "evil.example"}, {"origin": "https://evil.example"}, {"origin": "null"},
    {"origin": "http://localhost:3000"}, {"sec-fetch-site": "cross-site"}, {"sec-fetch-site": "same-site"},
)  # fmt: skip


@pytest.fixture(scope="module")
def served(decoder_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    log = tmp_path_factory.mktemp("served") / "log"
    with running(decoder_folder, "--threads", 1, log=log) as runner:
        yield runner


def test_it_answers_openai_s_client(served: Running) -> None:
    client = openai.OpenAI(base_url=str(served.client.base_url), api_key="none", max_retries=0)
    messages = CHAT["messages"]
    whole = client.chat.completions.create(model="decoder", messages=messages, temperature=0, max_tokens=12)
    stream = client.chat.completions.create(
        model="decoder", messages=messages, temperature=0, max_tokens=12, stream=True
    )
    pieces = [chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices]
    assert whole.choices[0].message.content == "".join(pieces) != ""
    assert client.completions.create(model="decoder", prompt="the cat", max_tokens=3).choices[0].text
    assert [model.id for model in client.models.list()] == ["decoder"]
    with pytest.raises(openai.NotFoundError, match="it offers /detokenize"):
        client.embeddings.create(model="decoder", input="the cat")


def test_it_says_its_threads_its_memory_and_how_far_from_the_probes_it_is(
    served: Running, decoder_folder: Path
) -> None:
    bound = json.loads((decoder_folder / "edge.json").read_text())["bound"]
    (said,) = served.said("serving")
    assert said["threads"] == 1 and said["model"] == "decoder@1" and said["form"] == "int4-matmulnbits"
    assert 50 < said["memory_mb"] < 1000 and 0 <= said["probes_differ_by"] <= bound


def test_pages_of_other_sites_are_refused_and_health_is_open(served: Running) -> None:
    root = str(served.client.base_url).removesuffix("/v1/")
    asked = [httpx.get(f"{root}/v1/models", headers=headers) for headers in FOREIGN]
    assert [one.status_code for one in asked] == [403] * len(FOREIGN)
    assert "'evil.example' is not this device's" in asked[0].json()["error"]["message"]
    for headers in ({"origin": root}, {"sec-fetch-site": "none"}, {"sec-fetch-site": "same-origin"}):
        assert httpx.get(f"{root}/v1/models", headers=headers).status_code == 200, headers
    twice = HTTPConnection(httpx.URL(root).netloc.decode())
    twice.putrequest("GET", "/v1/models", skip_host=True)
    for host in ("127.0.0.1", "evil.example"):
        twice.putheader("host", host)
    twice.endheaders()
    assert twice.getresponse().status == 403
    page = {"content-type": "text/plain", "origin": "http://127.0.0.1:1"}  # needs no preflight
    assert httpx.post(f"{root}/v1/chat/completions", json=CHAT, headers=page).status_code == 403
    image = {"sec-fetch-site": "cross-site", "sec-fetch-dest": "image"}
    assert httpx.get(f"{root}/metrics", headers=image).status_code == 403
    assert httpx.get(f"{root}/health", headers={"host": "evil.example"}).json()["status"] == "ready"
    assert httpx.post(f"{root}/hand-over").status_code == 404  # a gateway's, of which there is none


def test_sigterm_ends_it_after_the_running_answer(decoder_folder: Path, tmp_path: Path) -> None:
    body = {**CHAT, "stream": True, "max_tokens": 600}
    with running(decoder_folder, "--threads", 1, log=tmp_path / "log") as runner:
        with runner.client.stream("POST", "/chat/completions", json=body) as answer:
            lines = answer.iter_lines()
            next(lines)
            runner.process.send_signal(signal.SIGTERM)
            left = [line for line in lines if line]
        assert left[-1] == "data: [DONE]" and json.loads(left[-2][6:])["choices"][0]["finish_reason"]
        assert runner.process.wait(30) == 0


def test_what_it_will_not_serve_is_named(decoder_folder: Path, tmp_path: Path) -> None:
    code, said = refused(tmp_path / "nothing")
    assert code == 1 and said == f"{tmp_path}/nothing is not a folder; everlearn deploy edge makes one"
    code, said = refused(tmp_path)
    assert code == 1 and said == f"{tmp_path} holds no edge folder: it has no edge.json"
    broken = changed(decoder_folder, tmp_path / "broken")
    weights = broken / "weights-000.bin"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    code, said = refused(broken)
    assert code == 1 and said == f"{weights} is not the file that was written: its bytes changed"
    web = changed(
        decoder_folder,
        tmp_path / "web",
        target="web",
        form="int4-qdq",
        runtime={"name": "onnxruntime-web", "version": "1.30.0"},
    )
    code, said = refused(web)
    assert code == 1 and "was made for web, whose runtime is onnxruntime-web: make one with" in said


def test_a_machine_that_computes_other_numbers_than_the_probes_serves_nothing(
    decoder_folder: Path, tmp_path: Path
) -> None:
    said = json.loads((decoder_folder / "edge.json").read_text())
    said["probes"][-1]["top_logits"][0] += 3 * said["bound"]
    code, line = refused(changed(decoder_folder, tmp_path / "other", probes=said["probes"]))
    assert code == 1 and f"and at most {said['bound']} is allowed. The model is not served" in line


def test_the_network_gets_in_with_a_key_alone(decoder_folder: Path, tmp_path: Path) -> None:
    code, said = refused(decoder_folder, "--host", "0.0.0.0")
    assert code == 2 and said == (
        "--host 0.0.0.0 offers the model to the network: give --key-file, or leave it at 127.0.0.1"
    )
    key = tmp_path / "key"
    key.write_text("two words\n")
    code, said = refused(decoder_folder, "--key-file", key)
    assert code == 2 and said.startswith(f"{key} holds no key")
    key.write_text("s3cret\n")
    with running(decoder_folder, "--host", "0.0.0.0", "--key-file", key, log=tmp_path / "log") as runner:
        asked = [
            runner.client.get("/models", headers=headers).status_code
            for headers in ({}, {"authorization": "Bearer s3cre"}, {"authorization": "Bearer s3cret"})
        ]
        assert asked == [401, 401, 200]
        assert "s3cret" not in runner.log.read_text()


def test_a_unix_socket_is_its_user_s_and_replaces_one_left_behind(
    decoder_folder: Path, tmp_path: Path
) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    with started(decoder_folder, "--uds", path, output=subprocess.DEVNULL):
        client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), base_url="http://localhost")
        eventually(lambda: answers(client))
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        code, said = refused(decoder_folder, "--uds", path)
        assert code == 1 and said == f"--uds {path}: another process listens there"
    assert not path.exists()


def answers(client: httpx.Client) -> bool:
    try:
        return client.get("/v1/models").status_code == 200
    except httpx.TransportError:
        return False


def test_it_embeds(encoder_folder: Path, tmp_path: Path) -> None:
    with running(encoder_folder, "--threads", 1, log=tmp_path / "log") as runner:
        body = runner.client.post(
            "/embeddings", json={"model": "decoder", "input": ["the cat", "a dog"]}
        ).json()
    vectors = np.array([one["embedding"] for one in body["data"]])
    assert vectors.shape == (2, 64) and np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-4)


def test_a_moved_link_is_followed_without_losing_a_request_and_a_broken_folder_is_not(
    decoder_folder: Path, tmp_path: Path
) -> None:
    first = changed(decoder_folder, tmp_path / "1")
    second = changed(decoder_folder, tmp_path / "2", model="newer", version=2)
    third = changed(decoder_folder, tmp_path / "3", model="broken")
    (third / "model.onnx").write_bytes(b"")
    link = tmp_path / "current"
    link.symlink_to(first)
    lost: list[Exception] = []
    answered: list[str] = []
    end = threading.Event()
    with running(link, "--threads", 1, log=tmp_path / "log") as runner:

        def ask() -> None:
            while not end.is_set():
                try:  # a connection of its own for each, as most programs have
                    answer = httpx.post(
                        f"{runner.client.base_url}chat/completions",
                        json={**CHAT, "max_tokens": 4},
                        timeout=60,
                    )
                    answered.append(answer.raise_for_status().json()["model"])
                except Exception as error:  # noqa: BLE001 (each is what must not happen)
                    lost.append(error)

        threads = [threading.Thread(target=ask) for _ in range(3)]
        for thread in threads:
            thread.start()
        eventually(lambda: answered)
        move(link, third)
        eventually(lambda: runner.said("not served; the former folder still is"))
        move(link, second)
        eventually(lambda: answered[-1] == "newer", within_s=60)
        eventually(lambda: children(runner) == 1)
        end.set()
        for thread in threads:
            thread.join()
        (why,) = runner.said("not served; the former folder still is")
        assert why["why"] == f"{third}/model.onnx is not the file that was written: its bytes changed"
    assert not lost and set(answered) == {"decoder", "newer"}


def move(link: Path, target: Path) -> None:
    """As updates do: there is a link at any moment."""
    new = link.with_suffix(".new")
    new.symlink_to(target)
    os.replace(new, link)


def children(runner: Running) -> int:
    found = Path(f"/proc/{runner.process.pid}/task/{runner.process.pid}/children").read_text()
    return len(found.split())
