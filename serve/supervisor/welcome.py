"""The message of `everlearn serve` once everything is ready."""

import shlex
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from everlearn.registry.registry import Version
from everlearn.settings import Settings
from serve.supervisor.warmup import IMAGES

ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}
REQUESTS = {
    "generate": (
        "v1/chat/completions",
        '{"model": "%s", "messages": [{"role": "user", "content": "What is the capital of France?"}]}',
    ),
    "embed": ("v1/embeddings", '{"model": "%s", "input": "The river runs through the old town."}'),
    "image_text": (
        "v1/embeddings",
        '{"model": "%s", "input": [{"text": "a red dot"}, {"image": "data:image/png;base64,'
        + IMAGES[0]
        + '"}]}',
    ),
    "text2text": (
        "v1/completions",
        '{"model": "%s", "prompt": "The river runs through the old town.", "max_tokens": 64}',
    ),
    "classify": ("classify", '{"model": "%s", "input": "Rates rose again in March."}'),
    "score": (
        "rerank",
        '{"model": "%s", "query": "Where is the mill?", "documents": ["It stands by the river.", "Rates rose again."]}',
    ),
    "token_classify": ("pooling", '{"model": "%s", "input": "Ada lives in Turin."}'),
    "question_answer": (
        "models/%s",
        '{"inputs": {"question": "Where does Ada live?", "context": "Ada lives in Turin."}}',
    ),
}


def local_url(settings: Settings) -> str:
    """Where a client on this machine reaches the gateway."""
    host = ANYWHERE.get(settings.serve.host, settings.serve.host)
    return f"http://[{host}]:{settings.serve.port}" if ":" in host else f"http://{host}:{settings.serve.port}"


def welcome(
    settings: Settings, versions: Sequence[Version], ready_s: float, *, needs_key: bool,
    not_served: Mapping[str, str],
) -> None:  # fmt: skip
    """Print where the server is, what it serves and what it does not, and a first request to copy."""
    console = Console(highlight=False)
    url = local_url(settings)
    here = settings.serve.gateways > 0
    what = f"everlearn serves on {url}" if here else "the engines run, for gateways that run elsewhere"
    console.print(f"\n[bold green]{what}[/]  [dim]ready in {ready_s:.1f} s[/]\n")
    table = Table(box=None, pad_edge=True, padding=(0, 2), header_style="dim")
    for name in ("model", "version", "format", "task"):
        table.add_column(name)
    table.add_column("size", justify="right")
    for version in versions:
        table.add_row(
            version.model,
            version.ref,
            kind(version),
            version.task,
            f"{version.manifest.size_bytes / 1e6:.0f} MB",
        )
    console.print(table)
    for model, reason in not_served.items():
        console.print(f"\n  [bold red]not served[/]  {escape(model)}: {escape(reason)}", soft_wrap=True)
    if not here:
        return
    console.print(
        f"\n  playground  {url}/\n  try it      {first_request(url, versions[0], needs_key)}\n",
        soft_wrap=True,
    )


def first_request(url: str, version: Version, needs_key: bool) -> str:
    """A curl command that can be copied as it stands."""
    key = ' -H "Authorization: Bearer $EVERLEARN_API_KEY"' if needs_key else ""
    path, body = (one.replace("%s", version.model) for one in REQUESTS[version.task])
    data = shlex.quote(body)
    return f"curl {url}/{path}{key} -H 'Content-Type: application/json' -d {data}"


def kind(version: Version) -> str:
    """What it was exported to (int4-onnx), where it was made here."""
    return str(version.manifest.recipe.get("export", {}).get("to", version.format))
