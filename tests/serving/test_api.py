"""The whole API as a client sees it: keys, `/v1` of the real gateway, a replica with vLLM behind it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from shlex import split
from typing import Any

import openai
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, assume, given, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from modelfleet.cli.endpoint import curl_example, wait_for_first_answer
from modelfleet.cli.usage_report import report
from modelfleet.infra.interchange.arguments import parse
from modelfleet.infra.interchange.export import to_vllm
from modelfleet.infra.observability.samples import Look, Page
from modelfleet.infra.observability.top import page
from modelfleet.infra.planning.gateway_paths import KEY_METRICS, METRICS
from modelfleet.infra.planning.plan import ModelKind, ModelPlan
from modelfleet.infra.reading.node_hours import read_node_hours
from modelfleet.infra.reading.usage import read_usage
from modelfleet.serving.config.load import load_models
from modelfleet.serving.config.schema import ModelConfig
from modelfleet.serving.engine_args import engine_arguments
from modelfleet.serving.node_hours import UNNAMED
from tests.serving.cluster import ROOT, Cluster
from tests.serving.collector import Collector, Span, collecting
from tests.serving.conftest import EAGER, application, model
from tests.serving.front import KEY, Front, front
from tests.serving.tiny import make_adapter
from tests.unit.observability.models import keep_look, keep_scrape, scraped_names, watched, with_keys, with_slo
from tests.unit.planning import builders
from tests.waiting import wait_until

API, ADAPTER, VECTORS, RANKER = "test/api", "test/api-adapter", "test/vectors", "test/ranker"
#: Scores of the tiny model's own words, so that no other checkpoint is needed.
RANKS = {
    "architectures": ["LlamaForSequenceClassification"],
    "classifier_from_token": ["no", "yes"],
    "method": "from_2_way_softmax",
}
COLOURS = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
#: `strict`: without it vLLM, like OpenAI, lets the model write any arguments.
TOOL = {"type": "function", "function": {"name": "paint", "parameters": COLOURS, "strict": True}}
MESSAGES: Any = [{"role": "user", "content": "Hi"}]


def api_model(tiny: Path, adapter: Path) -> dict[str, Any]:
    engine = {
        "runtime_env": {"env_vars": {"VLLM_MAX_N_SEQUENCES": "3"}},
        "lora": [{"name": ADAPTER, "source": str(adapter)}],
        "generation": {"generate_kwargs": {"max_tokens": 8}},
        "engine_kwargs": {
            **EAGER,
            "dtype": "bfloat16",
            "max_num_seqs": 8,
            "enable_auto_tool_choice": True,
            "tool_call_parser": "hermes",
            "enable_log_requests": True,
            "structured_outputs_config": {"backend": "xgrammar", "disable_any_whitespace": True},
        },
    }
    return model(API, tiny, engine=engine)


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as made:
        yield made


@pytest.fixture(scope="module")
def gateway(cluster: Cluster, tiny: Path, adapter: Path, scratch: Path, collector: Collector) -> Iterator[Front]:
    vectors = model(VECTORS, tiny, engine={"model_type": "embedding"})
    ranker = model(RANKER, tiny, engine={"engine_kwargs": {"dtype": "float32", "hf_overrides": RANKS, **EAGER}})
    api = application(api_model(tiny, adapter))
    api["args"]["traces"] = collector.url
    cluster.serve(api, application(vectors), application(ranker))
    slugs = [name.replace("/", "--") for name in (API, VECTORS, RANKER)]
    for slug in slugs:
        cluster.wait(slug)
    with front(cluster, scratch / "api", {API: (ADAPTER,), VECTORS: (), RANKER: ()}, traces=True) as running:
        running.wait_ready()
        yield running
    cluster.remove(*slugs)


@pytest.fixture(scope="module")
def client(gateway: Front) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{gateway.url}/v1", api_key=KEY, max_retries=0, timeout=120) as made:
        yield made


def test_models_are_listed_and_one_is_found_by_its_id(client: openai.OpenAI) -> None:
    assert [one.id for one in client.models.list().data] == [API, ADAPTER, RANKER, VECTORS]
    assert client.models.retrieve(API).id == API
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.models.retrieve("nobody/nothing")


def test_chat_and_completions_answer_and_stream_the_same(client: openai.OpenAI) -> None:
    settings: Any = {"model": API, "temperature": 0, "max_tokens": 6, "extra_body": {"ignore_eos": True}}
    chat = client.chat.completions.create(messages=MESSAGES, **settings)
    assert chat.usage and chat.usage.completion_tokens == 6
    streamed = client.chat.completions.create(messages=MESSAGES, stream=True, **settings)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed if chunk.choices)
    assert text == chat.choices[0].message.content
    whole = client.completions.create(prompt="a b", **settings).choices[0].text
    assert (
        "".join(part.choices[0].text for part in client.completions.create(prompt="a b", stream=True, **settings))
        == whole
    )


def test_a_schema_for_the_answer_is_kept(client: openai.OpenAI) -> None:
    form: Any = {"type": "json_schema", "json_schema": {"name": "paint", "schema": COLOURS, "strict": True}}
    answer = client.chat.completions.create(model=API, messages=MESSAGES, response_format=form, max_tokens=40)
    assert json.loads(answer.choices[0].message.content or "")["colour"] in ("red", "blue")


def test_a_named_tool_is_called_with_arguments_of_its_schema(client: openai.OpenAI) -> None:
    """A random model may fill its answer with the whitespace that JSON allows, so it gets several tries."""
    choice: Any = {"type": "function", "function": {"name": "paint"}}
    asked: Any = {"model": API, "messages": MESSAGES, "tools": [TOOL], "tool_choice": choice, "max_tokens": 200}
    answers = [client.chat.completions.create(seed=seed, **asked).choices[0] for seed in range(6)]
    whole = [one.message.tool_calls for one in answers if one.finish_reason != "length" and one.message.tool_calls]
    assert whole, [one.message.content for one in answers]
    for (call,) in whole:
        assert call.function.name == "paint"  # type: ignore[union-attr]
        assert json.loads(call.function.arguments)["colour"] in ("red", "blue")  # type: ignore[union-attr]
    chunks = [chunk.choices[0].delta for chunk in client.chat.completions.create(stream=True, **asked) if chunk.choices]
    calls = [call.function for delta in chunks for call in delta.tool_calls or [] if call.function]
    assert "".join(call.name or "" for call in calls) == "paint"
    assert "".join(call.arguments or "" for call in calls).startswith("{")


def test_responses_are_made_and_streamed_but_not_kept(client: openai.OpenAI) -> None:
    made = client.responses.create(model=API, input="Hi", max_output_tokens=5)
    assert made.object == "response" and made.usage and made.usage.output_tokens <= 5
    kinds = [event.type for event in client.responses.create(model=API, input="Hi", max_output_tokens=5, stream=True)]
    assert kinds[0] == "response.created" and kinds[-1] in ("response.completed", "response.incomplete")
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(made.id)
    with pytest.raises(openai.BadRequestError, match="background"):
        client.responses.create(model=API, input="Hi", background=True)


def test_anthropics_messages_answer_too(gateway: Front) -> None:
    body = {"model": API, "messages": MESSAGES, "max_tokens": 5}
    headers = {"x-api-key": KEY}
    answer = requests.post(f"{gateway.url}/v1/messages", json=body, headers=headers, timeout=120)
    assert answer.status_code == 200 and answer.json()["type"] == "message"


def test_embeddings_come_from_the_embedding_model(client: openai.OpenAI) -> None:
    answer = client.embeddings.create(model=VECTORS, input=["a", "a b c", "a"])
    first, second, third = (one.embedding for one in answer.data)
    assert len(first) == 64 and first != second
    assert first == pytest.approx(third, abs=1e-3)
    with pytest.raises(openai.APIStatusError) as refused:
        client.chat.completions.create(model=VECTORS, messages=MESSAGES)
    assert refused.value.status_code in (400, 404)


def planned_model(model_id: str, kind: ModelKind) -> ModelPlan:
    """As the plan has it."""
    local = builders.stack(builders.pool("cpu", "CPU"), target="local", region=None)
    return replace(builders.planned([builders.model(model_id, "CPU")], local).models[0], kind=kind)


@pytest.mark.parametrize(("model_id", "kind"), [(API, "text"), (VECTORS, "embedding"), (RANKER, "reranker")])
def test_up_finds_out_what_a_model_answers_and_prints_a_request_that_works(
    gateway: Front, model_id: str, kind: ModelKind
) -> None:
    """The kind that the plan assumes does not matter: each model is tested with its own kind and with a wrong one."""
    for planned in (kind, "text" if kind != "text" else "embedding"):
        assert wait_for_first_answer(gateway.url, planned_model(model_id, planned), KEY)[1] == kind
    command = curl_example(gateway.url, planned_model(model_id, kind), kind, with_key=True)
    environment = {**os.environ, "MODELFLEET_API_KEY": KEY, "NO_PROXY": "*"}
    answer = subprocess.run(["sh", "-c", f"{command} -s"], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(answer.stdout)[{"text": "choices", "embedding": "data", "reranker": "results"}[kind]]


def test_tokenize_and_detokenize_are_each_others_inverse(gateway: Front) -> None:
    tokens = gateway.post("/tokenize", {"model": API, "prompt": "a b c", "add_special_tokens": False}).json()["tokens"]
    assert gateway.post("/detokenize", {"model": API, "tokens": tokens}).json()["prompt"] == "a b c"


def test_a_lora_adapter_is_asked_by_its_own_name(client: openai.OpenAI) -> None:
    settings: Any = {"prompt": "a b c", "temperature": 0, "max_tokens": 8}
    plain, adapted = (client.completions.create(model=name, **settings) for name in (API, ADAPTER))
    assert adapted.model == ADAPTER and adapted.choices[0].text != plain.choices[0].text


def test_the_request_id_is_in_headers_answer_and_both_logs(gateway: Front, cluster: Cluster) -> None:
    sent = "look-for-me-1"
    body = {"model": API, "prompt": "a", "max_tokens": 1}
    answer = gateway.post("/v1/completions", body, headers={"x-request-id": sent})
    assert answer.headers["x-request-id"] == sent and sent in answer.json()["id"]
    entry = gateway.logged(sent)
    assert (entry["key"], entry["model"], entry["status"]) == ("tester", API, 200)

    def named() -> bool:
        # vLLM writes its requests to the replica's standard output. The proxy's log, which names them too, is no proof.
        return any(sent in log.read_text(errors="replace") for log in cluster.logs.glob("worker-*.out"))

    wait_until(named, what="a log of a replica names the request", every_s=0.5)


def test_vllms_and_serves_metrics_of_each_model_are_on_one_scrape(cluster: Cluster, client: openai.OpenAI) -> None:
    client.completions.create(model=API, prompt="a", max_tokens=3)
    wanted = (
        "ray_vllm_time_to_first_token_seconds_bucket",
        "ray_vllm_inter_token_latency_seconds_bucket",
        "ray_vllm_request_success_total",
        "ray_serve_http_request_latency_ms_bucket",
        "ray_serve_deployment_processing_latency_ms_bucket",
    )
    slug = API.replace("/", "--")

    def found() -> dict[str, list[str]]:
        lines = [line for line in cluster.metrics().splitlines() if f'application="{slug}"' in line]
        return {name: [line for line in lines if line.startswith(f"{name}{{")] for name in wanted}

    wait_until(lambda: all(found().values()), what="all of them", seconds=90, every_s=1)
    for name in wanted[:2]:
        lines = found()[name]
        assert all(f'model_name="{API}"' in line for line in lines)
        assert len({line.split('le="')[1].split('"')[0] for line in lines}) > 5, "a histogram has several buckets"


def test_every_series_that_rules_and_dashboards_ask_for_is_on_a_scrape(
    cluster: Cluster, gateway: Front, client: openai.OpenAI
) -> None:
    """A query of a name that nobody exports is empty for ever. `SCRAPES=write` keeps them for the unit tests."""
    client.completions.create(model=API, prompt="a", max_tokens=3)
    plan = watched(with_slo({"ttft_p95_ms": 800, "tpot_p95_ms": 60, "availability": 0.999}, name=API))
    names = scraped_names(plan)

    def scrapes() -> dict[str, str]:
        return {"ray": cluster.metrics(), "gateway": requests.get(f"{gateway.metrics_url}/metrics", timeout=30).text}

    def missing() -> set[str]:
        return {name for name in names if not re.search(rf"^{name}\{{", "\n".join(scrapes().values()), re.MULTILINE)}

    try:
        wait_until(lambda: not missing(), what=f"series of {len(names)} names", seconds=90, every_s=2)
    finally:
        if os.environ.get("SCRAPES") == "write":
            for name, text in scrapes().items():
                keep_scrape(name, text, plan)
    slug = API.replace("/", "--")
    assert f'haproxy_backend_http_responses_total{{proxy="model.{slug}",code="2xx"}}' in scrapes()["gateway"]


def test_top_shows_a_live_models_tokens_latencies_and_who_asked(
    cluster: Cluster, gateway: Front, client: openai.OpenAI
) -> None:
    """`SCRAPES=write` keeps both looks for the unit tests."""
    plan = with_keys(watched(with_slo(None, name=API)))

    def look(at: float) -> Look:
        texts = {"ray": cluster.metrics()}
        for name, path in {"gateway": METRICS, "keys": KEY_METRICS}.items():
            texts[name] = requests.get(f"{gateway.metrics_url}{path}", timeout=30).text
        return Look(at, tuple(Page(name, text, ("l4",) if name == "ray" else ()) for name, text in texts.items()))

    client.completions.create(model=API, prompt="a", max_tokens=3)
    wait_until(lambda: page(plan, look(0), look(0)).models[0].replicas, what="its series", seconds=90, every_s=1)
    counted = f'ray_modelfleet_tokens_total{{.*key="tester".*model="{API}"'
    wait_until(lambda: re.search(counted, cluster.metrics()), what="its tokens", seconds=90, every_s=1)
    time.sleep(20)  # until all of it is counted: replicas copy every 5 s, Ray exports every 10 s
    before = look(0)
    for number in range(5):
        client.completions.create(model=API, prompt=f"a {number}", max_tokens=40, extra_body={"ignore_eos": True})

    def whole() -> Look | None:
        found = look(20)
        now = page(plan, before, found)
        tokens = [now.models[0].written_per_s, *(one.written_per_s for one in now.keys)]
        return found if tokens == [10.0, 10.0] and now.models[0].per_token.p95_s else None

    after = wait_until(whole, what="200 tokens of the model and of the key", seconds=90, every_s=1)
    assert after is not None
    if os.environ.get("SCRAPES") == "write":
        keep_look("before", before, plan)
        keep_look("after", after, plan)
    (one,) = page(plan, before, after).models
    assert one.first_token.p95_s is not None and 0 < one.first_token.p95_s < 60 and one.kv_use is not None


def test_one_request_is_one_trace_from_the_client_through_the_gateway_to_vllms_span(
    client: openai.OpenAI, collector: Collector
) -> None:
    trace, span = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
    headers = {"traceparent": f"00-{trace}-{span}-01"}
    client.completions.create(
        model=API, prompt="a", max_tokens=5, extra_body={"ignore_eos": True}, extra_headers=headers
    )
    client.completions.create(model=API, prompt="b", max_tokens=3, extra_body={"ignore_eos": True})

    def requests_of() -> list[Span]:
        return [one for one in collector.spans if one.name == "llm_request"]

    def own() -> list[Span]:
        return [one for one in requests_of() if (one.trace, one.parent) == (trace, span)]

    wait_until(lambda: own() and len(requests_of()) > len(own()), what="a span of each", seconds=60, every_s=0.5)
    (one,) = own()
    assert one.service == API and "5" in one.attributes["gen_ai.usage.completion_tokens"]
    others = [found for found in requests_of() if found.trace != trace]
    assert all(found.parent for found in others), "the gateway begins a trace, and vLLM's span is below it"
    assert len({found.trace for found in others}) == len(others)


def test_the_books_of_a_live_ray_have_its_node_its_replicas_and_who_asked(
    cluster: Cluster, client: openai.OpenAI
) -> None:
    client.completions.create(model=API, prompt="a", max_tokens=64, extra_body={"ignore_eos": True})
    since = datetime.now(UTC) - timedelta(hours=6)

    def books() -> tuple[Any, Any] | None:
        """A replica notes what it holds each minute: the line after the answer has the time of it."""
        hours = read_node_hours(cluster.usage, since)
        prices = {machine.pool: 3600.0 for machine in hours.machines}
        found = report(read_usage(cluster.usage), hours, prices, by="key", stack="live", since="6h").books
        paid = any((line.kind, line.model, line.name) == ("used", API, "tester") for line in found.lines)
        return (hours, found) if paid else None

    hours, found = wait_until(books, what="the books have the answer", seconds=150, every_s=2)
    (machine,), (bill,) = hours.machines, found.pools
    assert (machine.pool, bill.machines) == (UNNAMED, 1) and bill.node_hours > 0
    mine = [one for one in hours.holdings if one.model == API]
    assert all(one.share == pytest.approx(1 / 8) and machine.began <= one.began < one.ready for one in mine), mine
    assert {line.kind for line in found.lines if line.model == API} == {"used", "cold-start", "idle"}
    assert bill.cents == sum(line.cents for line in found.lines) > 0


def test_the_files_runtime_environment_reaches_the_engine(gateway: Front) -> None:
    answer = gateway.post("/v1/completions", {"model": API, "prompt": "a", "max_tokens": 1, "n": 4})
    assert answer.status_code == 400 and "n must be at most 3" in answer.json()["error"]["message"]


BAD: dict[str, tuple[bytes, int]] = {
    "no JSON": (b"{", 400),
    "broken UTF-8": (b'{"model": "test/api", "messages": [{"role": "user", "content": "\xff\xfe"}]}', 400),
    "an unknown model": (b'{"model": "nobody/nothing", "messages": []}', 404),
    "a context too long": (
        json.dumps({"model": API, "messages": [{"role": "user", "content": "word " * 2000}]}).encode(),
        400,
    ),
    "a thousand answers": (json.dumps({"model": API, "messages": MESSAGES, "n": 1000}).encode(), 400),
    "a body too large": (json.dumps({"model": API, "messages": "a" * (9 << 20)}).encode(), 413),
}


@pytest.mark.parametrize(("body", "code"), BAD.values(), ids=BAD)
def test_a_bad_request_gets_its_4xx_with_an_openai_error_body(gateway: Front, body: bytes, code: int) -> None:
    answer = gateway.post("/v1/chat/completions", data=body, headers={"content-type": "application/json"})
    assert answer.status_code == code, answer.text
    error = answer.json()["error"]
    assert error["code"] == code and error["message"] and {"type", "param"} <= error.keys()


OPENAPI = """
import json, sys
from modelfleet.serving.engine import namespace
from vllm.entrypoints.launchers.app import build_app
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
given = json.load(sys.stdin)
args = namespace(given["arguments"] | {"disable_fastapi_docs": False})
print("OPENAPI " + json.dumps(build_app(args, ("generate",)).openapi()))
parser = make_arg_parser(FlexibleArgumentParser())
plain = lambda value: getattr(value, "__dict__", None) or str(value)
read = [json.loads(json.dumps(vars(parser.parse_args(words)), default=plain)) for words in given["commands"]]
print("READ " + json.dumps(read))
"""
#: Command lines for vLLM's own parser and for the one of `modelfleet import`; the first is an export of ours.
COMMANDS = (
    to_vllm(load_models([ROOT / "models/meta-llama--Llama-2-70b-chat-hf.yaml"]).models[0])
    .partition("vllm serve ")[2]
    .replace("\\\n", " "),
    "a/b -tp 2 --max_model_len=8k --gpu-memory-utilization .9 --max-num-batched-tokens 8K -q awq -ep",
    "a/b --no-enable-prefix-caching --enable-chunked-prefill --served-model-name x y --max-num-batched-token 4096",
    """a/b --limit-mm-per-prompt '{"image": 4}' --cudagraph-capture-sizes 1 2 4 -O3 --max-lora-rank 64""",
    "a/b --speculative-config.method ngram --speculative-config.num_speculative_tokens 4 --seed -1 --dtype half",
    """a/b --kv-transfer-config '{"kv_connector": "NixlConnector", "kv_role": "kv_both"}'""",
)
#: This does not mean that every valid request is accepted: vLLM refuses what OpenAPI cannot express, such as an empty
#: conversation.
CHECKS = (not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance)
#: What vLLM 0.32 itself answers with a 500: an assistant's refusal in the conversation, of which it reads `text`
#: (vllm/entrypoints/openai/responses/utils.py).
VLLMS_OWN_FAULT = "'type': 'refusal'"
CHECKED = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize")


@pytest.fixture(scope="module")
def vllms_own(tiny: Path, adapter: Path) -> dict[str, Any]:
    """What vLLM itself says: `OPENAPI`, its API's description, which a replica does not expose, and `READ` commands."""
    arguments = engine_arguments(ModelConfig.model_validate(api_model(tiny, adapter)), str(tiny))
    done = subprocess.run(
        [sys.executable, "-c", OPENAPI],
        input=json.dumps({"arguments": arguments, "commands": [split(command) for command in COMMANDS]}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=300,
    )
    said = dict(line.split(" ", 1) for line in done.stdout.splitlines() if line.startswith(("OPENAPI ", "READ ")))
    assert said.keys() == {"OPENAPI", "READ"}, done.stderr[-2000:]
    return {name: json.loads(text) for name, text in said.items()}


@pytest.mark.parametrize("index", range(len(COMMANDS)))
def test_a_command_has_the_arguments_that_vllms_own_parser_reads(vllms_own: dict[str, Any], index: int) -> None:
    ours, theirs = parse(split(COMMANDS[index])), vllms_own["READ"][index]
    assert not ours.notes
    for name, value in ours.arguments.items():
        found = theirs[name]
        same = found.items() >= value.items() if isinstance(value, dict) else found in (value, str(value))
        assert same, f"{name}: vLLM reads {found}, we read {value}"


@pytest.mark.parametrize("path", CHECKED)
def test_what_vllm_describes_is_what_the_gateway_answers(gateway: Front, vllms_own: dict[str, Any], path: str) -> None:
    """No request that fits vLLM's own schema is a server error, and answers fit it."""
    schema = schemathesis.openapi.from_dict(vllms_own["OPENAPI"])
    operation = schema[path]["POST"]

    @settings(
        max_examples=15,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy())
    def conforms(case: Any) -> None:
        assume(VLLMS_OWN_FAULT not in repr(case.body))
        if isinstance(case.body, dict):
            case.body["model"] = API
        headers = {"authorization": f"Bearer {KEY}"}
        case.call_and_validate(base_url=gateway.url, headers=headers, timeout=60, checks=CHECKS)

    conforms()
