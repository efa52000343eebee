"""What environments show and take, and what small networks are made for."""

from __future__ import annotations

from dataclasses import replace

from rlinf_graph.ir.graph import EnvDef, Graph, ModelDef
from rlinf_graph.nodes.environment import environments_class


def infer_spaces(graph: Graph) -> Graph:
    """Set the spaces of every environment, and those of the models made for one.

    Raises:
        CompileError: RG0503 and RG0510, for environments that cannot be made here.
    """
    if not graph.envs:
        return graph
    envs = tuple(_with_spaces(env) for env in graph.envs)
    known = {env.name: env for env in envs}
    models = tuple(_made_for(m, known[m.env]) if m.env else m for m in graph.models)
    return replace(graph, envs=envs, models=models)


def _with_spaces(env: EnvDef) -> EnvDef:
    if env.observation is not None:
        return env
    observation, action = environments_class(env.engine).spaces(env)
    return replace(env, observation=observation, action=action)


def _made_for(model: ModelDef, env: EnvDef) -> ModelDef:
    return replace(model, observation=env.observation, action=env.action)
