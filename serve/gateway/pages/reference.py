"""The texts of the API reference: for each route a group, a description, and an example body."""

from typing import Any, NamedTuple


class RouteDescription(NamedTuple):
    """The texts of one method and path."""

    group: str
    description: str
    example: dict[str, Any] | None = None


ASKED = {
    "model": "smollm2",
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 64,
}
BATCH = {"input_file_id": "file-…", "endpoint": "/v1/chat/completions", "completion_window": "24h"}
ANSWERS, PREDICTIONS, MODELS, FILES = "Answers", "Predictions", "Models", "Files"
BATCHES, TRAINING, SERVER = "Batches", "Training", "Server"

RERANKED = {
    "model": "a reranker",
    "query": "Where is the mill?",
    "documents": ["The mill stands by the river.", "Rates rose again."],
    "top_n": 1,
}
SCORED = {
    "model": "a reranker",
    "text_1": "Where is the mill?",
    "text_2": ["The mill stands by the river.", "Rates rose again."],
}

REFERENCE = {
    "post /v1/chat/completions": RouteDescription(
        ANSWERS,
        "OpenAI's chat: messages in, an answer out; streamed, with tools, or in a given format.",
        ASKED,
    ),
    "post /v1/completions": RouteDescription(
        ANSWERS, "The continuation of a text.", {"model": "smollm2", "prompt": "One, two,", "max_tokens": 8}
    ),
    "post /v1/responses": RouteDescription(
        ANSWERS,
        "OpenAI's responses, also as the Open Responses specification has them; nothing is stored.",
        {"model": "smollm2", "input": "What is the capital of France?", "max_output_tokens": 64},
    ),
    "post /v1/messages": RouteDescription(ANSWERS, "Anthropic's messages, over the same models.", ASKED),
    "post /v1/messages/count_tokens": RouteDescription(
        ANSWERS,
        "The number of tokens of a message's prompt.",
        {name: value for name, value in ASKED.items() if name != "max_tokens"},
    ),
    "post /v1/embeddings": RouteDescription(
        ANSWERS,
        "A vector for each text, from an embedding model; of a model of images and texts, for each image, too.",
        {"model": "embedding model", "input": ["A text.", "Another text."]},
    ),
    "post /classify": RouteDescription(
        PREDICTIONS,
        "A label for each text, with the probabilities of all, as vLLM answers.",
        {"model": "a classifier", "input": ["Rates rose again in March."]},
    ),
    "post /score": RouteDescription(PREDICTIONS, "How well texts fit one another, as vLLM answers.", SCORED),
    "post /v1/score": RouteDescription(PREDICTIONS, "The same as /score.", SCORED),
    "post /rerank": RouteDescription(
        PREDICTIONS,
        "Documents in the order in which they fit a query, as Jina, Cohere and vLLM answer.",
        RERANKED,
    ),
    "post /v1/rerank": RouteDescription(PREDICTIONS, "The same as /rerank.", RERANKED),
    "post /v2/rerank": RouteDescription(PREDICTIONS, "The same as /rerank.", RERANKED),
    "post /pooling": RouteDescription(
        PREDICTIONS,
        "For each token the probabilities of its labels, as vLLM answers.",
        {"model": "a token classifier", "input": "Ada lives in Turin."},
    ),
    "post /models/{model}": RouteDescription(
        PREDICTIONS,
        "Labels, entities, or the answer to a question in a text, as Hugging Face's inference API answers.",
        {"inputs": {"question": "Where does Ada live?", "context": "Ada lives in Turin."}},
    ),
    "post /tokenize": RouteDescription(
        ANSWERS, "The tokens of a prompt, or of messages.", {"model": "smollm2", "prompt": "One, two,"}
    ),
    "post /detokenize": RouteDescription(
        ANSWERS, "The text of tokens.", {"model": "smollm2", "tokens": [504, 28, 827, 28]}
    ),
    "get /v1/models": RouteDescription(MODELS, "The models that are served and that the key may use."),
    "get /v1/models/{model}": RouteDescription(MODELS, "One of the models; also by version, as name@2."),
    "delete /v1/models/{model}": RouteDescription(
        MODELS, "Deletes a version that one of the key's jobs made and that nothing uses any more."
    ),
    "post /v1/files": RouteDescription(FILES, "Uploads a file of JSON lines, for a batch or for training."),
    "get /v1/files": RouteDescription(FILES, "The key's own files."),
    "get /v1/files/{file_id}": RouteDescription(FILES, "One file's size, purpose and age."),
    "delete /v1/files/{file_id}": RouteDescription(
        FILES, "Deletes a file that no batch or job uses any more."
    ),
    "get /v1/files/{file_id}/content": RouteDescription(
        FILES, "The content of a file, such as a batch's answers."
    ),
    "post /v1/batches": RouteDescription(BATCHES, "Runs many requests from one file at low priority.", BATCH),
    "get /v1/batches": RouteDescription(BATCHES, "The key's own batches, the newest first."),
    "get /v1/batches/{batch_id}": RouteDescription(
        BATCHES, "The progress of a batch, and the files with its answers."
    ),
    "post /v1/batches/{batch_id}/cancel": RouteDescription(
        BATCHES, "Cancels a batch; the answers so far are kept."
    ),
    "post /v1/fine_tuning/jobs": RouteDescription(
        TRAINING,
        "Trains a served model on a file; a gate decides whether the result is served.",
        {"model": "smollm2", "training_file": "file-…"},
    ),
    "get /v1/fine_tuning/jobs": RouteDescription(TRAINING, "The key's own jobs, the newest first."),
    "get /v1/fine_tuning/jobs/{job_id}": RouteDescription(TRAINING, "The progress and the result of a job."),
    "post /v1/fine_tuning/jobs/{job_id}/cancel": RouteDescription(TRAINING, "Cancels a job."),
    "get /v1/fine_tuning/jobs/{job_id}/events": RouteDescription(
        TRAINING, "The events of a job, the newest first."
    ),
    "get /v1/fine_tuning/jobs/{job_id}/checkpoints": RouteDescription(
        TRAINING, "Checkpoints are not models here: always empty."
    ),
    "get /v1/updates/{path}": RouteDescription(
        SERVER, "A file of the channel of signed updates, where the settings name one."
    ),
    "get /health": RouteDescription(SERVER, "The process is running."),
    "get /ready": RouteDescription(
        SERVER, "Requests are accepted: at least one engine is ready, and the server is not shutting down."
    ),
    "get /metrics": RouteDescription(
        SERVER, "For Prometheus; needs a key unless the server is bound to loopback."
    ),
}
"""By method and path. A route that is not listed shows its own docstring, in the group of the server."""
