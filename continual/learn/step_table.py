"""A job's figures as a table, as fine-tuning services leave one: a row per optimizer step."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

COLUMNS = ("step", "train_loss", "valid_loss", "learning_rate", "tokens")


def step_table(run_dir: Path, before: float, after: float) -> bytes:
    """CSV with :data:`COLUMNS`, losses in nats per token.

    ``valid_loss`` is the gate's, on the held-out documents of the domain that was taught: at step 0 the weights' that
    training began from (``before``), at the last step the candidate's (``after``).
    """
    written = io.StringIO()
    table = csv.writer(written, lineterminator="\n")
    table.writerow(COLUMNS)
    table.writerow((0, "", f"{before:.6f}", "", 0))
    steps = [json.loads(line) for line in (run_dir / "steps.jsonl").read_text().splitlines()]
    for number, step in enumerate(steps, 1):
        valid = f"{after:.6f}" if number == len(steps) else ""
        table.writerow((step["step"], f"{step['loss']:.6f}", valid, f"{step['lr']:.6g}", step["tokens"]))
    return written.getvalue().encode()
