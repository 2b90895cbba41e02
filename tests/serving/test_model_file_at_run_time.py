"""Keys of the model file, seen from outside: prompt_format, stops, defaults, LoRA, broken weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from modelfleet.serving.config.serve_options import DEPLOYMENT
from tests.serving.cluster import Cluster
from tests.serving.conftest import EAGER, application, model
from tests.serving.tiny import make_adapter
from tests.waiting import wait_until

FORMATTED, ADAPTED, BROKEN = "test/formatted", "test/adapted", "test/broken"
SLUG = FORMATTED.replace("/", "--")
GENERATION = {
    "prompt_format": {
        "system": "<S>{instruction}</S>",
        "user": "[U]{instruction}[/U]",
        "assistant": "[A]{instruction}[/A]",
        "trailing_assistant": "[A]",
    },
    "stopping_sequences": ["stop-a", "stop-b", "stop-c", "stop-d", "stop-e", "<|im_end|>", 2],
    "generate_kwargs": {"temperature": 0.0, "max_tokens": 7, "seed": 11},
}


def with_adapters(tiny: Path, folders: dict[str, Path]) -> dict[str, Any]:
    """The application as the plan makes it: slots among the arguments, adapters in `user_config`."""
    slots = {"enable_lora": True, "max_loras": 4, "max_lora_rank": 8, **EAGER}
    lora = [{"name": name, "source": str(folder), "mirror": None} for name, folder in folders.items()]
    one = application(model(FORMATTED, tiny, engine={"generation": GENERATION, "engine_kwargs": slots}))
    return {**one, "deployments": [{"name": DEPLOYMENT, "user_config": {"lora": lora}}]}


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("lora") / "adapter")


@pytest.fixture(scope="module")
def url(cluster: Cluster, tiny: Path, adapter: Path) -> Iterator[str]:
    cluster.serve(with_adapters(tiny, {ADAPTED: adapter}))
    cluster.wait(SLUG)
    yield cluster.url(SLUG)
    cluster.remove(SLUG)


def post(url: str, path: str, **body: Any) -> requests.Response:
    return requests.post(f"{url}{path}", json={"model": FORMATTED, **body}, timeout=120)


def chat(url: str, messages: list[dict[str, Any]], **body: Any) -> requests.Response:
    return post(url, "/v1/chat/completions", messages=messages, **body)


def user(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def test_the_prompt_is_what_prompt_format_renders(url: str) -> None:
    messages = [*user(" a "), {"role": "system", "content": "s"}, {"role": "assistant", "content": "b"}]
    answer = chat(url, messages, return_prompt_text=True).json()
    assert answer["prompt_text"] == "<S>s</S>[U]a[/U][A]b[/A][A]"


def test_a_chat_prompt_is_tokenised_like_a_plain_one(url: str) -> None:
    """RayLLM's formats rely on the tokenizer to add BOS if it does so; vLLM's chat adds none itself."""
    tokens = post(url, "/tokenize", messages=user("a")).json()["tokens"]
    assert tokens == post(url, "/tokenize", prompt="[U]a[/U][A]").json()["tokens"]


def test_completions_get_their_prompt_raw(url: str) -> None:
    answer = post(url, "/v1/completions", prompt="raw", return_token_ids=True, max_tokens=1).json()
    assert answer["choices"][0]["prompt_token_ids"] == post(url, "/tokenize", prompt="raw").json()["tokens"]


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ([{"role": "system", "content": "a"}] * 2, "Only one system message can be specified."),
        ([{"role": "user", "content": [{"type": "text", "text": "a"}]}], "messages.0.content must be a string"),
        ([{"role": "assistant", "content": ""}], "must not be empty"),
    ],
)
def test_messages_that_rayllm_refused_get_400_and_the_reason(
    url: str, messages: list[dict[str, Any]], reason: str
) -> None:
    answer = chat(url, messages)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]


def test_the_file_says_the_default_length_and_a_request_may_ask_for_more(url: str) -> None:
    for path, prompt in (("/v1/chat/completions", {"messages": user("a")}), ("/v1/completions", {"prompt": "a"})):
        default = post(url, path, ignore_eos=True, **prompt).json()["usage"]["completion_tokens"]
        longer = post(url, path, ignore_eos=True, max_tokens=12, **prompt).json()["usage"]["completion_tokens"]
        assert (default, longer) == (7, 12), path


def test_temperature_of_the_file_acts_and_a_request_overrides_it(url: str) -> None:
    same = {chat(url, user("a")).json()["choices"][0]["message"]["content"] for _ in range(3)}
    assert len(same) == 1
    other = {
        chat(url, user("a"), temperature=1.5, seed=seed).json()["choices"][0]["message"]["content"] for seed in range(4)
    }
    assert len(other) > 1


def first_token(url: str) -> tuple[int, str]:
    answer = post(url, "/v1/completions", prompt="a", max_tokens=3, return_token_ids=True).json()["choices"][0]
    return answer["token_ids"][1], answer["text"]


def test_a_request_stops_on_its_own_stops_besides_the_files(url: str) -> None:
    token, _ = first_token(url)
    answer = post(url, "/v1/completions", prompt="a", max_tokens=9, stop_token_ids=[token], ignore_eos=True).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == token


def test_more_stops_than_vllm_allows_in_a_request_come_from_the_file(url: str) -> None:
    """`stop-a` … `stop-e`: a text that contains one ends there. Its bias makes the random model say it."""
    ids = post(url, "/tokenize", prompt="stop-c", add_special_tokens=False).json()["tokens"]
    answer = post(
        url, "/v1/completions", prompt="a", max_tokens=9, structured_outputs={"regex": r"xy stop-c and more"}
    ).json()["choices"][0]
    assert ids
    assert (answer["finish_reason"], answer["stop_reason"]) == ("stop", "stop-c")
    assert answer["text"] == "xy "


def test_a_special_token_stops_by_its_id(url: str) -> None:
    answer = post(url, "/v1/completions", prompt="a", max_tokens=9, ignore_eos=True, logit_bias={"2": 100}).json()
    assert answer["choices"][0]["finish_reason"] == "stop"
    assert answer["choices"][0]["stop_reason"] == 2


def test_a_lora_adapter_is_a_model_of_its_own_and_answers_differently(url: str) -> None:
    listed = {one["id"]: one for one in requests.get(f"{url}/v1/models", timeout=60).json()["data"]}
    assert listed[ADAPTED]["parent"] == FORMATTED
    plain = post(url, "/v1/completions", prompt="a b c").json()["choices"][0]["text"]
    body = {"model": ADAPTED, "prompt": "a b c"}
    adapted = requests.post(f"{url}/v1/completions", json=body, timeout=120).json()["choices"][0]["text"]
    assert adapted != plain


def test_adapters_come_and_go_while_the_replica_runs(
    cluster: Cluster, url: str, tiny: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """An adapter in `args` restarted its model."""
    folder = tmp_path_factory.mktemp("more")
    second = make_adapter(folder / "second", rank=8)
    before = [(one["replica_id"], one["pid"]) for one in cluster.replicas(SLUG)]

    def has(*names: str) -> None:
        def listed() -> bool:
            cards = requests.get(f"{url}/v1/models", timeout=60).json()["data"]
            return {one["id"] for one in cards} == {FORMATTED, *names}

        wait_until(listed, what=f"{names} are served", seconds=60)

    has(ADAPTED)
    cluster.serve(with_adapters(tiny, {ADAPTED: adapter, "test/second": second}))
    has(ADAPTED, "test/second")
    body = {"model": "test/second", "prompt": "a b c"}
    assert requests.post(f"{url}/v1/completions", json=body, timeout=120).status_code == 200
    # One whose folder is no adapter is a line in the log; the others come and go.
    cluster.serve(with_adapters(tiny, {"test/second": second, "test/none": folder}))
    has("test/second")
    assert requests.post(f"{url}/v1/completions", json=body | {"model": ADAPTED}, timeout=120).status_code == 404
    assert [(one["replica_id"], one["pid"]) for one in cluster.replicas(SLUG)] == before, "no replica was started"
    cluster.serve(with_adapters(tiny, {ADAPTED: adapter}))
    has(ADAPTED)


def test_a_broken_mirror_is_one_clear_line_in_the_deployments_status_and_no_fallback(
    cluster: Cluster, mirror: str
) -> None:
    slug = BROKEN.replace("/", "--")
    cluster.serve(application(model(BROKEN), "s3://fleet/models/nothing-here"))
    details = cluster.wait(slug, "DEPLOY_FAILED")
    cluster.remove(slug)
    (deployment,) = details["deployments"].values()
    message = deployment["message"]
    assert "s3://fleet/models/nothing-here has no manifest" in message
    assert "fill it (`pulumi up` does)" in message
    assert "Traceback" not in message
    assert len(message.splitlines()) < 12, message
