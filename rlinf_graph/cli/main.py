"""`rlinf-graph`: compile, explain and run pipelines."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, NoReturn

import typer

from rlinf_graph.cli.arguments import pairs_of, pythons_of, spelled_out
from rlinf_graph.ir import diagnostic
from rlinf_graph.ir.diagnostic import CompileError, fail

if TYPE_CHECKING:
    from rlinf_graph.compiler.cost.kernels import Kernels

app = typer.Typer(
    help="Compile, explain and run reinforcement-learning pipelines.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
cluster_app = typer.Typer(help="Descriptions of machines.", no_args_is_help=True)
app.add_typer(cluster_app, name="cluster")


class KernelSource(StrEnum):
    """Where measured kernels come from."""

    SILICON = "silicon"


class ObjectiveName(StrEnum):
    """What a plan is chosen by."""

    SECONDS = "seconds"
    SAMPLES = "samples"
    COST = "cost"
    PARETO = "pareto"


class ExplainFormat(StrEnum):
    """How a plan is printed."""

    TEXT = "text"
    JSON = "json"


INTERRUPTED = 130
"""The exit status after Ctrl-C: 128 and the number of the signal."""

Target = Annotated[str, typer.Argument(metavar="FILE[:PIPELINE]", help="the pipeline's file")]
ClusterOption = Annotated[
    str, typer.Option("--cluster", metavar="C", help="a TOML file, `local`, or such as 16xH100")
]
SetOption = Annotated[
    list[str] | None, typer.Option("--set", metavar="NAME=VALUE", help="a pipeline parameter")
]
PinOption = Annotated[
    list[str] | None,
    typer.Option("--pin", metavar="NODE=WORDS", help='such as rollout=0-7, or "rollout=tp 2"'),
]
PinsOption = Annotated[
    Path | None, typer.Option("--pins", metavar="FILE", help="TOML: a pin in each line")
]
AddressOption = Annotated[
    str | None, typer.Option("--address", help="of a running Ray cluster to join")
]
ProfileOption = Annotated[
    Path | None,
    typer.Option("--profile", metavar="PROFILE", help="measurements, written by profile"),
]
InitOption = Annotated[
    list[str] | None, typer.Option("--init", metavar="MODEL=FOLDER", help="a model's first weights")
]

PythonOption = Annotated[
    list[str] | None,
    typer.Option("--python", metavar="ENGINE=PATH", help="the interpreter an engine runs in"),
]


@app.command("compile")
def compile_command(
    target: Target,
    cluster: ClusterOption = "local",
    settings: SetOption = None,
    pins: PinOption = None,
    pins_file: PinsOption = None,
    profile: ProfileOption = None,
    explain: Annotated[
        ExplainFormat | None, typer.Option("--explain", help="print the plan and its reasons")
    ] = None,
    objective: Annotated[
        ObjectiveName, typer.Option("--objective", help="what the plan has least of, or pareto")
    ] = ObjectiveName.SECONDS,
    kernels: Annotated[
        KernelSource | None,
        typer.Option("--kernels", help="measured kernels for sampling: the extra `silicon`"),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="PLAN")] = None,
    dump_after: Annotated[
        str | None, typer.Option("--dump-after", metavar="PASS", help="print the graph as JSON")
    ] = None,
) -> None:
    """Check a pipeline and choose the best plan for a cluster."""
    from rlinf_graph.cli.api import compile_pipeline
    from rlinf_graph.cli.loading import load_pipeline
    from rlinf_graph.cli.pareto import pareto_text
    from rlinf_graph.cli.pins_file import read_pins
    from rlinf_graph.cli.profile_file import read_profile
    from rlinf_graph.compiler.passes import PASSES
    from rlinf_graph.ir import graph_file
    from rlinf_graph.ir import plan as plans
    from rlinf_graph.ir.graph import Graph

    def dump(name: str, graph: Graph) -> None:
        if name == dump_after:
            print(graph_file.dumps(graph))

    if dump_after is not None and dump_after not in (names := [p.__name__ for p in PASSES]):
        raise typer.BadParameter(f"the passes are {', '.join(names)}", param_hint="--dump-after")
    pipeline, others = load_pipeline(target)
    compiled = compile_pipeline(
        pipeline, cluster, parameters=pairs_of(settings), pins=read_pins(pins_file, pairs_of(pins)),
        profile=read_profile(profile), after=dump, objective=_objective(objective),
        kernels=_kernels(kernels),
    )  # fmt: skip
    if output is not None:
        _write(output, plans.dumps(compiled.plan))
        print(f"plan written to {output}", file=sys.stderr)
    if objective is ObjectiveName.PARETO:
        print(pareto_text(compiled))
    elif explain is not None or (output is None and dump_after is None):
        _print_explain(compiled, explain or ExplainFormat.TEXT)
    if others:
        print(f"other pipelines in this file: {', '.join(others)}", file=sys.stderr)


@app.command("run")
def run_command(
    target: Target,
    cluster: ClusterOption = "local",
    plan: Annotated[Path | None, typer.Option("--plan", help="written by compile -o")] = None,
    backend: Annotated[str, typer.Option(help="local: this process; ray: one a device")] = "local",
    address: AddressOption = None,
    iterations: Annotated[int, typer.Option(min=1)] = 10,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    settings: SetOption = None,
    pins: PinOption = None,
    pins_file: PinsOption = None,
    profile: ProfileOption = None,
    init: InitOption = None,
    python: PythonOption = None,
    bucket_mb: Annotated[
        float | None, typer.Option(min=0.001, help="of weights that travel together")
    ] = None,
    checksums: Annotated[bool, typer.Option("--checksums", help="check weights that come")] = False,
    out: Annotated[Path | None, typer.Option(help="folder; runs/PIPELINE by default")] = None,
    analyze: Annotated[
        bool, typer.Option("--analyze", help="print the plan with what was measured; write a trace")
    ] = False,
) -> None:
    """Run a pipeline, by a plan or by the best one."""
    from rlinf_graph.cli.api import compile_pipeline, run_compiled
    from rlinf_graph.cli.loading import load_pipeline
    from rlinf_graph.cli.pins_file import read_pins
    from rlinf_graph.cli.profile_file import read_profile
    from rlinf_graph.cli.progress import pace, progress
    from rlinf_graph.ir import plan as plans

    pipeline, _others = load_pipeline(target)
    given = None if plan is None else plans.loads(_read(plan), str(plan))
    compiled = compile_pipeline(
        pipeline, cluster, parameters=pairs_of(settings), pins=read_pins(pins_file, pairs_of(pins)),
        plan=given, profile=read_profile(profile), runnable=True, pythons=pythons_of(python),
        own=backend == "local",
    )  # fmt: skip
    folder = out or Path("runs") / pipeline.name
    with progress(pipeline.name, iterations) as report:
        done = run_compiled(
            compiled, iterations=iterations, folder=folder, seed=seed, backend=backend,
            address=address, initial=pairs_of(init), report=report,
            pythons=pythons_of(python),
            bucket_mb=bucket_mb, checksums=checksums,
        )  # fmt: skip
    print(f"{iterations} iterations in {done.seconds:.1f} s; "
          f"{pace(compiled.plan, done.iteration_s, backend)}; results in {folder}")  # fmt: skip
    if analyze:
        from rlinf_graph.cli.analysis import write_analysis
        from rlinf_graph.compiler.explain import render_analysis

        report = write_analysis(compiled, done, folder, backend)
        print(f"\n{render_analysis(report, color=sys.stdout.isatty())}", end="")
        print(f"written: analyze.txt, analyze.json and trace.json (ui.perfetto.dev) in {folder}",
              file=sys.stderr)  # fmt: skip


@app.command("profile")
def profile_command(
    target: Target,
    cluster: ClusterOption = "local",
    settings: SetOption = None,
    init: InitOption = None,
    seed: Annotated[int, typer.Option(help="of every random draw")] = 0,
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="PROFILE", help="runs/PIPELINE/profile.json"),
    ] = None,
    address: AddressOption = None,
    python: PythonOption = None,
) -> None:
    """Measure a pipeline's nodes on this machine; compile and run take the file they leave."""
    from rlinf_graph.cli.loading import load_pipeline
    from rlinf_graph.cli.profile_file import write_profile
    from rlinf_graph.cli.profiling import fit_lines, profile_pipeline

    pipeline, _others = load_pipeline(target)
    made = profile_pipeline(
        pipeline,
        cluster,
        parameters=pairs_of(settings),
        initial=pairs_of(init),
        seed=seed,
        address=address,
        pythons=pythons_of(python),
    )
    path = write_profile(made.profile, output or Path("runs") / pipeline.name / "profile.json")
    print("\n".join(fit_lines(made.fits)))
    print(f"profile written to {path}", file=sys.stderr)


@app.command("graph")
def graph_command(
    target: Target,
    settings: SetOption = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", metavar="FILE.svg", help="draw it there, too")
    ] = None,
) -> None:
    """Print a pipeline's graph: its nodes, what they hand on, and what feeds back."""
    from rlinf_graph.cli.graph import show_graph

    shown = show_graph(target, pairs_of(settings))
    print(shown.text, end="")
    if output is not None:
        _write(output, shown.svg)
        print(f"picture written to {output}", file=sys.stderr)
    if shown.others:
        print(f"other pipelines in this file: {', '.join(shown.others)}", file=sys.stderr)


@app.command("explain")
def explain_command(code: str) -> None:
    """Print the page about a diagnostic, such as RG0301."""
    print(diagnostic.page(code.upper()), end="")


@app.command("nodes")
def nodes_command() -> None:
    """List the node types with their signatures."""
    from rlinf_graph.dsl.node import node_types
    from rlinf_graph.nodes.plugins import load_plugins

    load_plugins()
    for name, kind in sorted(node_types().items()):
        models = [f"{s.name}: Model ({s.port})" for s in kind.models]
        inputs = [f"{s.name}: {' | '.join(s.types)}{'?' * s.optional}" for s in kind.inputs]
        options = [f"{s.name}={s.default!r}" if not s.required else s.name for s in kind.options]
        outputs = ", ".join(kind.outputs) or "None"
        print(f"{name}({', '.join([*models, *inputs])}) -> {outputs}")
        print(f"    {kind.doc}")
        if options:
            print(f"    options: {', '.join(options)}")


@app.command("engines")
def engines_command(python: PythonOption = None) -> None:
    """List the engines: what each can do, what it needs, and what of that is installed."""
    from rlinf_graph.cli.engines import engines_text
    from rlinf_graph.nodes.installed import Installed

    print(engines_text(Installed(tuple(pythons_of(python).items()))), end="")


@cluster_app.command("detect")
def detect_command(
    output: Annotated[Path | None, typer.Option("-o", "--output", metavar="FILE")] = None,
) -> None:
    """Describe this machine as a cluster file."""
    from rlinf_graph.ir.cluster_file import detect, dump_cluster

    text = dump_cluster(detect())
    if output is None:
        print(text, end="")
    else:
        _write(output, text)
        print(f"written to {output}", file=sys.stderr)


def main() -> NoReturn:
    """Run the command line; diagnostics go to stderr, and the exit status is 1."""
    try:
        status = app(spelled_out(sys.argv[1:]), standalone_mode=False)
    except CompileError as error:
        print(error, file=sys.stderr)
        known = set(diagnostic.codes())
        codes = sorted({d.code for d in error.diagnostics} & known)
        if codes:
            print(f"\nfor more: rlinf-graph explain {codes[0]}", file=sys.stderr)
        sys.exit(1)
    except typer.Exit as stop:
        sys.exit(stop.exit_code)
    except Exception as error:
        usage: Any = error  # a wrong command line, whichever click typer brings
        if hasattr(usage, "show") and hasattr(usage, "exit_code"):
            usage.show()
            sys.exit(usage.exit_code)
        raise
    if status == INTERRUPTED:
        print("interrupted", file=sys.stderr)
    sys.exit(status if isinstance(status, int) else 0)


def _print_explain(compiled: object, form: ExplainFormat) -> None:
    from rlinf_graph.compiler.explain import explain, render_json, render_text

    report = explain(compiled)  # pyright: ignore[reportArgumentType]  # imported lazily
    print(render_json(report) if form is ExplainFormat.JSON else render_text(report))


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError as error:
        raise fail("RG0601", f"cannot read {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise fail("RG0601", f"cannot read {path}: it is not text") from None


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text)
    except OSError as error:
        help_text = ("give a file in a folder that exists",)
        raise fail("RG0004", f"cannot write {path}: {error.strerror}", help=help_text) from None


def _kernels(source: KernelSource | None) -> Kernels | None:
    """The measured kernels that were asked for.

    Raises:
        BadParameter: where their package is not installed.
    """
    from rlinf_graph.compiler.cost.silicon import INSTALL, Silicon

    if source is None:
        return None
    if not Silicon.installed():
        raise typer.BadParameter(f"its package is missing: {INSTALL}", param_hint="--kernels")
    return Silicon()


def _objective(name: ObjectiveName) -> Literal["seconds", "cost"]:
    """Most samples a second are fewest seconds, since an iteration has as many samples."""
    return "cost" if name is ObjectiveName.COST else "seconds"


if __name__ == "__main__":
    main()
