"""What a run leaves on disk."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rlinf_graph.backends.record import IterationRecord
from rlinf_graph.ir.diagnostic import fail


class RunFolder:
    """Writes `metrics.jsonl`, `samples.jsonl` and TensorBoard events while a run goes on.

    Attributes:
        path: the folder; made when missing. What an earlier run left there is overwritten.
        records: the metrics of each iteration so far.
    """

    def __init__(self, path: Path) -> None:
        """Make the folder and open the files."""
        from torch.utils.tensorboard.writer import SummaryWriter

        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            help_text = ("--out FOLDER",)
            message = f"cannot make the folder {path}: {error.strerror}"
            raise fail("RG0004", message, help=help_text) from None
        for pattern in ("events.out.tfevents.*", "analyze.*", "trace.json"):
            for old in path.glob(pattern):
                old.unlink()
        self.path = path
        self.records: list[dict[str, Any]] = []
        self._metrics = (path / "metrics.jsonl").open("w")
        self._samples = (path / "samples.jsonl").open("w")
        self._board = SummaryWriter(str(path))

    def __enter__(self) -> Self:
        """For `with`."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the files."""
        for file in (self._metrics, self._samples, self._board):
            file.close()

    def write(self, record: IterationRecord, **more: float) -> None:
        """Keep a finished iteration; `more` are metrics beside its own, such as seconds."""
        values = {"iteration": record.iteration, **record.metrics, **more}
        self.records.append(values)
        self._metrics.write(json.dumps(values) + "\n")
        self._metrics.flush()
        for sample in record.samples:
            self._samples.write(json.dumps(sample, ensure_ascii=False) + "\n")
        for name, value in {**record.metrics, **more}.items():
            self._board.add_scalar(name, value, record.iteration)


def write_summary(folder: Path, values: dict[str, Any]) -> None:
    """Write `summary.json`."""
    (folder / "summary.json").write_text(json.dumps(values, indent=1) + "\n")
