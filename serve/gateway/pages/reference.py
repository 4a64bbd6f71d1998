"""What the API's document says of each route besides its fields: a group, a sentence, and a body to try."""

from typing import Any, NamedTuple


class Told(NamedTuple):
    """Of one method and path."""

    group: str
    description: str
    example: dict[str, Any] | None = None


ASKED = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 64,
}
BATCH = {"input_file_id": "file-…", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
ANSWERS, MODELS, FILES = "Answers", "Models", "Files"
BATCHES, TRAINING, SERVER = "Batches", "Training", "Server"

REFERENCE = {
    "post /v1/chat/completions": Told(
        ANSWERS,
        "OpenAI's chat: messages in, an answer out; streamed, with tools, or in a given shape.",
        ASKED,
    ),
    "post /v1/completions": Told(
        ANSWERS, "The continuation of a text.", {"model": "smollm2", "prompt": "One, two,", "max_tokens": 8}
    ),
    "post /v1/responses": Told(
        ANSWERS,
        "OpenAI's responses, also as the Open Responses specification has them; nothing is stored.",
        {"model": "smollm2", "input": "What is the capital of France?", "max_output_tokens": 64},
    ),
    "post /v1/messages": Told(ANSWERS, "Anthropic's messages, over the same models.", ASKED),
    "post /v1/messages/count_tokens": Told(
        ANSWERS,
        "How many tokens the prompt of a message has.",
        {name: value for name, value in ASKED.items() if name != "max_tokens"},
    ),
    "post /v1/embeddings": Told(
        ANSWERS,
        "A vector for each text, from an embedding model.",
        {"model": "embedding model", "input": ["A text.", "Another text."]},
    ),
    "post /tokenize": Told(
        ANSWERS, "The tokens of a prompt, or of messages.", {"model": "smollm2", "prompt": "One, two,"}
    ),
    "post /detokenize": Told(
        ANSWERS, "The text of tokens.", {"model": "smollm2", "tokens": [504, 28, 827, 28]}
    ),
    "get /v1/models": Told(MODELS, "The models that are served, and that the key may use."),
    "get /v1/models/{model}": Told(MODELS, "One of them; also by version, as name@2."),
    "delete /v1/models/{model}": Told(
        MODELS, "Deletes a version that a job of the key's made, and that nothing needs any more."
    ),
    "post /v1/files": Told(FILES, "Uploads a file of JSON lines, for a batch or for training."),
    "get /v1/files": Told(FILES, "The key's own files."),
    "get /v1/files/{file_id}": Told(FILES, "One file's size, purpose and age."),
    "delete /v1/files/{file_id}": Told(FILES, "Deletes a file that no batch and no job needs any more."),
    "get /v1/files/{file_id}/content": Told(FILES, "What is in a file, such as a batch's answers."),
    "post /v1/batches": Told(BATCHES, "Many requests from one file, answered when nobody waits.", BATCH),
    "get /v1/batches": Told(BATCHES, "The key's own batches, the newest first."),
    "get /v1/batches/{batch_id}": Told(BATCHES, "How far a batch is, and where its answers are."),
    "post /v1/batches/{batch_id}/cancel": Told(BATCHES, "Ends a batch; what is answered is kept."),
    "post /v1/fine_tuning/jobs": Told(
        TRAINING,
        "Has a served model learn a file; a gate decides whether the outcome is served.",
        {"model": "smollm2", "training_file": "file-…"},
    ),
    "get /v1/fine_tuning/jobs": Told(TRAINING, "The key's own jobs, the newest first."),
    "get /v1/fine_tuning/jobs/{job_id}": Told(TRAINING, "How far a job is, and what became of it."),
    "post /v1/fine_tuning/jobs/{job_id}/cancel": Told(TRAINING, "Ends a job."),
    "get /v1/fine_tuning/jobs/{job_id}/events": Told(TRAINING, "What happened to a job, the newest first."),
    "get /v1/fine_tuning/jobs/{job_id}/checkpoints": Told(
        TRAINING, "Checkpoints are not models here: always empty."
    ),
    "get /health": Told(SERVER, "The process answers."),
    "get /ready": Told(SERVER, "Requests can be taken: not shutting down, and at least one engine is there."),
    "get /metrics": Told(SERVER, "For Prometheus; needs a key unless the server is bound to loopback."),
}
"""By method and path. A route that is not here has its own docstring, and the group of the server."""
