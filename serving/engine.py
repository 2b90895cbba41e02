"""vLLM's engine and OpenAI application in this process. Imports vLLM: only a replica imports this module.

What a model file asks for and vLLM has no argument for is hooked in here: stop sequences, the default answer length and
the refusals of `prompt_format`. The hooks are behind the HTTP layer, so they act on every endpoint alike.
"""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NoReturn, cast
from weakref import WeakValueDictionary

from starlette.exceptions import HTTPException
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
from vllm.entrypoints.openai.models.protocol import LoRAModulePath
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.handlers.http import http_exception_handler
from vllm.entrypoints.serve.lora.protocol import LoadLoRAAdapterRequest, UnloadLoRAAdapterRequest
from vllm.exceptions import VLLMValidationError
from vllm.outputs import RequestOutput
from vllm.platforms import current_platform
from vllm.reasoning import ReasoningParserManager
from vllm.sampling_params import SamplingParams
from vllm.usage.usage_lib import UsageContext
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine import EngineCoreRequest
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.output_processor import OutputProcessor, RequestState
from vllm.v1.executor.multiproc_executor import MultiprocExecutor

from modelfleet.serving.body_defaults import CHAT, CHATS, COMPLETIONS, BodyDefaults
from modelfleet.serving.config.generate_kwargs import default_max_tokens
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.prompt import MessagesRefused, check_messages
from modelfleet.serving.sampling import Stops, body_defaults, compile_stops
from modelfleet.serving.startup import StartupClock
from modelfleet.serving.thoughts import Thoughts
from modelfleet.serving.usage import CURRENT, Counts

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.types import ASGIApp

logger = logging.getLogger("ray.serve")


class EngineSequence:
    """One sequence of vLLM's output processor, for the books; its state stays as it was when vLLM lets go of it.

    `parser` has what the HTTP layer gave to its reasoning parser; None for an endpoint without one, and for a model.
    """

    def __init__(
        self,
        model: str,
        state: RequestState,
        states: Mapping[str, RequestState],
        thoughts: Thoughts | None = None,
        parser: Mapping[str, Any] | None = None,
    ) -> None:
        self._model, self._state, self._states = model, state, states
        self._thoughts, self._parser = thoughts, parser
        self.aborted = False

    @property
    def thinks(self) -> bool:
        """Whether vLLM's HTTP layer looks for thoughts in its answer."""
        return self._thoughts is not None and self._parser is not None

    def thoughts(self) -> int:
        """The thoughts in its answer; 0 where vLLM's parser fails on it, which is in the log."""
        if self._thoughts is None or self._parser is None or self._state.detokenizer is None:
            return 0
        answer = self._state.detokenizer.output_token_ids
        try:
            return self._thoughts.count(self._state.prompt_token_ids or (), answer, self._parser)
        except Exception:  # vLLM's parsers read what a model wrote
            logger.exception("the thoughts of an answer with %s tokens were not counted", len(answer))
            return 0

    @property
    def ended(self) -> bool:
        """Whether vLLM has let go of it: what its engine still says of it counts nowhere."""
        return self._states.get(self._state.request_id) is not self._state

    @property
    def counts(self) -> Counts:
        """The tokens so far, as vLLM's own counters have them (`IterationStats.update_from_output`)."""
        state = self._state
        answered = 0
        if state.stats is not None:
            answered = state.stats.num_generation_tokens
        elif state.detokenizer is not None:
            answered = state.detokenizer.num_output_tokens()
        read = not state.is_prefilling
        return Counts(
            model=self._model,
            adapter=state.lora_name,
            group=state.parent_req.request_id if state.parent_req else state.request_id,
            prompt=state.prompt_len if read else 0,
            cached=state.num_cached_tokens if read else 0,
            completion=answered,
        )


class MeteredOutputs(OutputProcessor):
    """vLLM's output processor, which tells each sequence to the HTTP request that began it."""

    model: str
    thoughts: Thoughts | None
    _metered: WeakValueDictionary[str, EngineSequence]

    @classmethod
    def take_over(cls, outputs: OutputProcessor, model: str, thoughts: Thoughts | None) -> None:
        """Makes `outputs` one of these: vLLM's engine has made it by then, and its output task has it already."""
        outputs.__class__ = cls
        metered = cast(MeteredOutputs, outputs)
        metered.model, metered.thoughts, metered._metered = model, thoughts, WeakValueDictionary()

    def add_request(self, request: EngineCoreRequest, *args: Any, **kwargs: Any) -> None:
        """As vLLM's; runs in the task of the request, or in one that it started."""
        super().add_request(request, *args, **kwargs)
        usage = CURRENT.get()
        state = self.request_states.get(request.request_id)
        if usage is None or state is None or request.request_id in self._metered:
            return
        parser = request.reasoning_parser_kwargs
        one = EngineSequence(self.model, state, self.request_states, self.thoughts, parser)
        self._metered[request.request_id] = one
        usage.sequences.append(one)

    def abort_requests(self, request_ids: Iterable[str], internal: bool) -> list[str]:
        """As vLLM's, and notes which answers are not whole."""
        aborted: list[str] = super().abort_requests(request_ids, internal)
        for request_id in aborted:
            if (one := self._metered.get(request_id)) is not None:
                one.aborted = True
        return aborted


class FleetEngine(AsyncLLM):
    """vLLM's engine with a model file's stop sequences added to every request, and its tokens counted per request."""

    stops = Stops((), ())

    def generate(  # type: ignore[override]  # the same generator, with no extra layer per token
        self, prompt: Any, sampling_params: SamplingParams, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[RequestOutput, None]:
        """As vLLM's, after adding the stops: the HTTP layer's limit on their number does not apply here."""
        if self.stops:
            add_stops(sampling_params, self.stops)
        outputs: AsyncGenerator[RequestOutput, None] = super().generate(prompt, sampling_params, *args, **kwargs)
        return outputs


def add_stops(params: SamplingParams, stops: Stops) -> None:
    """Adds `stops` to the request's own, and updates what `SamplingParams.__post_init__` derived from those."""
    if stops.strings and params.detokenize:
        params.stop = list(dict.fromkeys([*(params.stop or ()), *stops.strings]))
        if not params.include_stop_str_in_output:
            params.output_text_buffer_length = max(map(len, params.stop)) - 1
    if stops.token_ids:
        params.stop_token_ids = list(dict.fromkeys([*(params.stop_token_ids or ()), *stops.token_ids]))
        params.all_stop_token_ids.update(stops.token_ids)


class Adapters:
    """The LoRA adapters of a running engine, by the names that clients use."""

    def __init__(self, models: Any) -> None:
        self._models = models

    async def become(self, folders: Mapping[str, Path], keep: Collection[str] = ()) -> dict[str, str]:
        """Loads what is new or has another folder, and takes away what is not named.

        Open requests of an adapter that has another folder go on with its new weights; all others end undisturbed.
        `keep` are names that stay as they are. Returns by name why vLLM refuses an adapter.
        """
        for name in self._models.lora_requests.keys() - folders.keys() - set(keep):
            await self._models.unload_lora_adapter(UnloadLoRAAdapterRequest(lora_name=name))
        faults = {}
        for name, folder in folders.items():
            known = self._models.lora_requests.get(name)
            if known is not None and known.lora_path == str(folder):
                continue
            asked = LoadLoRAAdapterRequest(lora_name=name, lora_path=str(folder), load_inplace=known is not None)
            answer = await self._models.load_lora_adapter(asked)
            if isinstance(answer, ErrorResponse):
                faults[name] = f"lora {name}: vLLM refuses it: {' '.join(answer.error.message.split())[:300]}"
            else:
                # vLLM keeps the request and gives it to every later one of a client: at each step it would read the
                # adapter from the disk again (vLLM 0.32 `vllm/lora/worker_manager.py`, `add_adapter`).
                self._models.lora_requests[name].load_inplace = False
        return faults


async def start(
    model: ModelConfig, arguments: dict[str, Any], clock: StartupClock
) -> tuple[ASGIApp, AsyncLLM, Adapters]:
    """Starts the engine with `arguments` and builds vLLM's application on it; `clock` notes the steps."""
    generation = model.engine_config.generation
    args = namespace(arguments)
    config = AsyncEngineArgs.from_cli_args(args).create_engine_config(UsageContext.OPENAI_API_SERVER)
    clock.passed("vLLM's configuration")
    engine = FleetEngine.from_vllm_config(
        config, usage_context=UsageContext.OPENAI_API_SERVER, disable_log_stats=args.disable_log_stats
    )
    if config.parallel_config.nnodes > 1 and current_platform.is_cpu():
        # A further stage makes room for what it receives in the first batch that nobody sends it. With GPUs that is the
        # profiling step, which the CPU build leaves out when it runs eagerly (vLLM 0.32 `cpu_model_runner.py`,
        # `warming_up_model`; `gpu_model_runner.py`, `_dummy_run`).
        await engine.collective_rpc("execute_dummy_batch")
    tasks = await engine.get_supported_tasks()
    clock.passed("engine")
    app = _with_openai_errors(build_app(args, tasks, engine.model_config))
    await init_app_state(engine, app.state, args, tasks)
    # vLLM's handler of a dead engine's error tells its server to end. Here there is none: the replica ends itself.
    app.state.server = SimpleNamespace()
    engine.stops = _stops(model, engine)
    MeteredOutputs.take_over(engine.output_processor, model.model_id, _thoughts(app, engine, args))
    _default_length(app, default_max_tokens(generation.generate_kwargs))
    if generation.prompt_format is not None:
        _as_rayllm(app.state.online_renderer)
    # Wrapped around the application, because vLLM has already built its middleware stack.
    served: ASGIApp = app
    chat, completion = body_defaults(generation.generate_kwargs)
    if chat or completion:
        served = BodyDefaults(served, {CHAT: chat, CHATS: chat, COMPLETIONS: completion})
    clock.passed("application")
    return served, engine, Adapters(app.state.openai_serving_models)


def run_stage(arguments: dict[str, Any], begun: Callable[[], None]) -> None:
    """Runs the workers of a further stage of a pipeline, as `vllm serve --headless`; returns once one of them ended.

    `begun` is called once they are up. The engine of the first stage tells them what to do. vLLM 0.32
    `vllm/entrypoints/cli/serve.py`, `run_headless`.
    """
    config = AsyncEngineArgs.from_cli_args(namespace(arguments)).create_engine_config(
        UsageContext.OPENAI_API_SERVER, headless=True
    )
    executor = MultiprocExecutor(config, monitor_workers=False)
    begun()
    executor.start_worker_monitor(inline=True)


def namespace(arguments: dict[str, Any]) -> Namespace:
    """vLLM's parsed command line with its defaults, and `arguments` over them.

    A mapping goes through vLLM's own parser, which turns it into the config object that vLLM's front end reads
    (`args.structured_outputs_config.reasoning_parser`). Everything else is as the command line would give it.
    """
    parser = make_arg_parser(FlexibleArgumentParser())
    parser.error = _refuse  # instead of SystemExit
    flags = {action.dest: action.option_strings[0] for action in parser._actions if action.option_strings}
    mappings = {name: value for name, value in arguments.items() if isinstance(value, dict) and name in flags}
    words = [word for name, value in mappings.items() for word in (flags[name], json.dumps(value))]
    args: Namespace = parser.parse_args(words)
    for name, value in arguments.items():
        if name not in mappings:
            setattr(args, name, value)
    if args.lora_modules:
        args.lora_modules = [LoRAModulePath(**module) for module in args.lora_modules]
    validate_parsed_serve_args(args)
    return args


def _refuse(message: str) -> NoReturn:
    raise ValueError(message)


def _with_openai_errors(app: FastAPI) -> FastAPI:
    """Gives vLLM's error body also to what FastAPI itself refuses: broken UTF-8, an unknown path.

    vLLM registers its handler for FastAPI's HTTPException, but FastAPI raises Starlette's, its base class.
    """
    app.exception_handler(HTTPException)(http_exception_handler)
    app.middleware_stack = app.build_middleware_stack()
    return app


def _thoughts(app: FastAPI, engine: AsyncLLM, args: Namespace) -> Thoughts | None:
    """What counts the model's thoughts; None without a reasoning parser, and for a model that does not chat."""
    name, tokenizer = args.structured_outputs_config.reasoning_parser, engine.renderer.tokenizer
    chat = getattr(app.state, "openai_serving_chat", None)
    if not name or tokenizer is None or chat is None:
        return None
    # gpt-oss's reasoning parser knows only where thoughts end; its whole parser counts them (vLLM 0.32 `harmony.py`).
    harmony = engine.model_config.hf_config.model_type == "gpt_oss"
    parser = chat.parser_cls if harmony else ReasoningParserManager.get_reasoning_parser(name)
    return Thoughts(partial(parser, tokenizer, model_config=engine.model_config))


def _stops(model: ModelConfig, engine: AsyncLLM) -> Stops:
    generation, tokenizer = model.engine_config.generation, engine.renderer.tokenizer
    stops = generation.stopping_sequences, generation.generate_kwargs.get("stop")
    if tokenizer is None:  # skip_tokenizer_init, for which `check` allows only single token ids
        return compile_stops(*stops, special_tokens={}, decode=_without_tokenizer)
    special = getattr(tokenizer, "all_special_tokens", ())
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {str(token): number for number, token in added.items() if getattr(token, "special", False)}
    ids |= {token: tokenizer.convert_tokens_to_ids(token) for token in special}
    return compile_stops(
        *stops, special_tokens=ids, decode=lambda tokens: tokenizer.decode(tokens, skip_special_tokens=False)
    )


def _without_tokenizer(tokens: list[int]) -> NoReturn:
    raise ValueError(f"stop {tokens} needs a tokenizer; leave engine_kwargs.skip_tokenizer_init out")


def _default_length(app: FastAPI, max_tokens: int | None) -> None:
    """Sets the default of `max_tokens`, which `override_generation_config` would turn into a cap (vLLM 0.32)."""
    if max_tokens is None:
        return
    for handler in (
        "openai_serving_chat",
        "openai_serving_chat_batch",
        "openai_serving_completion",
        "openai_serving_responses",
    ):
        serving = getattr(app.state, handler, None)
        if serving is not None:
            serving.default_sampling_params["max_tokens"] = max_tokens


def _as_rayllm(renderer: Any) -> None:
    """Refuses what RayLLM refused, and adds the BOS token once.

    A compiled template has no BOS, and vLLM's chat endpoints add one only when the request says so. RayLLM's formats
    rely on it.
    """
    preprocess = renderer.preprocess_chat

    async def preprocess_chat(request: Any, messages: list[Any], *args: Any, **kwargs: Any) -> Any:
        try:
            check_messages(messages)
        except MessagesRefused as error:
            raise VLLMValidationError(str(error), parameter="messages") from None
        if "add_special_tokens" not in request.model_fields_set and hasattr(request, "add_special_tokens"):
            request.add_special_tokens = True
        return await preprocess(request, messages, *args, **kwargs)

    renderer.preprocess_chat = preprocess_chat
