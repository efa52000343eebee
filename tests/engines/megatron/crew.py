"""Processes that wait for work, since importing Megatron takes them ten seconds.

Each piece of work is done by as many as it asks for, in a torch.distributed world of their own.
"""

from __future__ import annotations

import faulthandler
import multiprocessing
import os
import pickle
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from time import monotonic
from typing import Any

from rlinf_graph.backends.ray.rendezvous import spare_port

START_SECONDS = 400
WORK_SECONDS = 240


class Crew:
    def __init__(self) -> None:
        self._context = multiprocessing.get_context("spawn")
        self._members: list[tuple[Any, Connection]] = []

    def run(self, world: int, work: Callable[..., Any], *args: Any) -> list[Any]:
        """What each process returned, by rank; fails with what one raised, and after a while."""
        while len(self._members) < world:
            mine, theirs = self._context.Pipe()
            process = self._context.Process(target=serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._members.append((process, mine))
        pipes = [pipe for _process, pipe in self._members[:world]]
        port = spare_port()
        for rank, pipe in enumerate(pipes):
            pipe.send((work, args, rank, world, port))
        try:
            return self._answers(pipes, "start", START_SECONDS) and self._answers(
                pipes, "work", WORK_SECONDS
            )
        except BaseException:
            self.end()
            raise

    def _answers(self, pipes: list[Connection], what: str, seconds: float) -> list[Any]:
        found: dict[Any, Any] = {}
        deadline = monotonic() + seconds
        while len(found) < len(pipes):
            ready = wait([p for p in pipes if p not in found], deadline - monotonic())
            if not ready:
                raise TimeoutError(f"{len(pipes) - len(found)} processes did not {what} in time")
            for pipe in ready:
                try:
                    said, value = pickle.loads(pipe.recv_bytes())  # type: ignore[union-attr]  they are pipes
                except EOFError:
                    raise RuntimeError("a process ended without an answer") from None
                if said != "done":
                    raise AssertionError(f"a process failed:\n{value}")
                found[pipe] = value
        return [found[pipe] for pipe in pipes]

    def end(self) -> None:
        for process, pipe in self._members:
            pipe.close()
            process.terminate()
            process.join(10)
            if process.is_alive():
                process.kill()
                process.join()
        self._members = []


def serve(pipe: Connection) -> None:
    import torch
    import torch.distributed as dist

    from rlinf_graph.engines.megatron import adapter

    torch.set_num_threads(1)
    while True:
        try:
            work, args, rank, world, port = pipe.recv()
        except EOFError:
            return
        here = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        os.environ.update({name: str(value) for name, value in here.items()})
        pipe.send_bytes(pickle.dumps(("done", True)))
        faulthandler.dump_traceback_later(WORK_SECONDS - 10)
        try:
            answer = "done", work(*args)
        except BaseException:
            answer = "failed", traceback.format_exc()
        faulthandler.cancel_dump_traceback_later()
        pipe.send_bytes(pickle.dumps(answer))
        adapter.leave()
        if dist.is_initialized():
            dist.destroy_process_group()
