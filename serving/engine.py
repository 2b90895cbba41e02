"""vLLM's engine and OpenAI application in this process. Imports vLLM: only a replica imports this module."""

from __future__ import annotations

from argparse import Namespace
from typing import TYPE_CHECKING, Any

from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.async_llm import AsyncLLM

from serving.config.schema import ModelConfig
from serving.engine_args import engine_arguments
from serving.sampling import default_max_tokens

if TYPE_CHECKING:
    from fastapi import FastAPI


async def start(model: ModelConfig, weights: str) -> tuple[FastAPI, AsyncLLM]:
    """Starts the engine on `weights` (folder or Hub id) and builds vLLM's application on it."""
    args = namespace(engine_arguments(model, weights))
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
    engine = AsyncLLM.from_vllm_config(
        config, usage_context=UsageContext.OPENAI_API_SERVER, disable_log_stats=args.disable_log_stats
    )
    tasks = await engine.get_supported_tasks()
    app = build_app(args, tasks, engine.model_config)
    await init_app_state(engine, app.state, args, tasks)
    _default_length(app, default_max_tokens(model.engine_config.generation.generate_kwargs))
    return app, engine


def namespace(arguments: dict[str, Any]) -> Namespace:
    """vLLM's parsed command line with its defaults, and `arguments` over them."""
    args = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    for name, value in arguments.items():
        setattr(args, name, value)
    validate_parsed_serve_args(args)
    return args


def _default_length(app: FastAPI, max_tokens: int | None) -> None:
    """A default of `max_tokens`, where `override_generation_config` would make it a cap (vLLM 0.32)."""
    if max_tokens is None:
        return
    for handler in ("openai_serving_chat", "openai_serving_completion", "openai_serving_responses"):
        serving = getattr(app.state, handler, None)
        if serving is not None:
            serving.default_sampling_params["max_tokens"] = max_tokens
