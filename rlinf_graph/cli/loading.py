"""Pipelines from the files they are declared in."""

from __future__ import annotations

import importlib.util
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from rlinf_graph.dsl.pipeline import Pipeline
from rlinf_graph.ir.diagnostic import CompileError, fail, suggest
from rlinf_graph.ir.span import Span


def load_pipeline(target: str) -> tuple[Pipeline, list[str]]:
    """The pipeline of `FILE` or `FILE:NAME`, and the names of the others in the file.

    Without a name the last pipeline of the file is taken.

    Raises:
        CompileError: RG0002 for a file that is not there or has no pipeline, RG0003 for one that
            Python cannot run.
    """
    file, _, name = target.partition(":")
    known = pipelines_of(load_module(Path(file)))
    if not known:
        help_text = ("declare one: @rl.pipeline above a function",)
        raise fail("RG0002", f"{file} declares no pipeline", help=help_text)
    if name and name not in known:
        raise fail("RG0002", f"{file} has no pipeline `{name}`", help=(suggest(name, known),))
    chosen = name or list(known)[-1]
    return known[chosen], [other for other in known if other != chosen]


def load_module(path: Path) -> ModuleType:
    """Run a Python file as a module; its folder is importable while it runs.

    Raises:
        CompileError: RG0002 or RG0003.
    """
    if not path.is_file():
        raise fail("RG0002", f"there is no file {path}")
    name = f"_pipelines_{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path.resolve())
    if spec is None or spec.loader is None:
        raise fail("RG0002", f"{path} is no Python file", help=("its name has to end in .py",))
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except CompileError:
        raise
    except SyntaxError as error:
        line, column = error.lineno or 1, error.offset or 1
        span = Span(str(path), line, column, line, column + 1)
        raise fail("RG0003", f"{path} is not valid Python: {error.msg}", span) from None
    except (Exception, SystemExit) as error:
        raise fail(
            "RG0003",
            f"{path} raised {type(error).__name__}: {error}",
            _span_in(path, error),
        ) from error
    finally:
        sys.path.pop(0)
    return module


def pipelines_of(module: ModuleType) -> Mapping[str, Pipeline]:
    """The pipelines that a module declares, in the order of the file."""
    found = [value for value in vars(module).values() if isinstance(value, Pipeline)]
    own = [p for p in found if p.function.__module__ == module.__name__]
    return {p.name: p for p in sorted(own, key=lambda p: p.function.__code__.co_firstlineno)}


def _span_in(path: Path, error: BaseException) -> Span | None:
    """The last line of the file itself on the way to an exception."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).resolve() == path.resolve()
    ]
    if not lines or lines[-1] is None:
        return None
    source = Span(str(path), lines[-1], 1, lines[-1], 1).source
    start = len(source) - len(source.lstrip()) + 1
    return Span(str(path), lines[-1], start, lines[-1], len(source) + 1)
