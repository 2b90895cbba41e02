"""`--fix` changes names and nothing else. Otherwise one command loses a team's comments."""

from __future__ import annotations

import re
import stat
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from modelfleet.serving.config.document import KeyPath, parse_document
from modelfleet.serving.config.errors import InputErrors, Severity
from modelfleet.serving.config.load import load_model, model_of
from modelfleet.serving.config.rayllm.fix import fix_file, fixed_text, text_with
from modelfleet.serving.config.rayllm.legacy import normalise

SHIPPED = sorted((Path(__file__).parent / "rayllm").glob("*.yaml"))


def fixed(text: str) -> str:
    return fixed_text(text, "m.yaml")[0]


def comments(text: str) -> Counter[str]:
    return Counter(re.findall(r"(?m)(?:^|\s)(#.*)$", text))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_file_needs_no_notice_afterwards_and_means_the_same(path: Path) -> None:
    before = path.read_text()
    after = fixed(before)
    document = parse_document(after.encode(), path.name)
    assert normalise(document).edits == [], "an old name is left"
    assert [f for f in model_of(document)[1] if f.severity is Severity.NOTICE] == []
    assert document.findings == (), "a repeated key is left"
    assert document.data == normalise(parse_document(before.encode(), path.name)).data or "trtllm" in path.name
    assert comments(after) == comments(before)
    assert fixed(after) == after, "a second run must change nothing"


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_lines_without_an_old_name_stay_byte_for_byte(path: Path) -> None:
    old = re.compile(
        r"target_num_|smoothing_factor|max_concurrent_queries|accelerator_type_|do_sample|return_token_type_ids"
    )
    kept = [line for line in path.read_text().splitlines() if not old.search(line)]
    if path.name == "amazon--LightGPT.yaml":
        kept = [line for line in kept if "Below is an instruction" not in line]
    after = fixed(path.read_text()).splitlines()
    assert [line for line in after if line in kept] == kept, "the order must be kept"


COMMENTED = """\
# About the model
deployment_config:  # how it scales
  autoscaling_config:
    min_replicas: 1

    # how many each
    target_num_ongoing_requests_per_replica: 24   # measured in May
    # how quick
    smoothing_factor: 0.6 # not faster
    # the end
  'max_concurrent_queries' : 64
  ray_actor_options: {resources: {accelerator_type_a10: 0.01}}   # steering
engine_config:
  model_id: "a/b"   # public
  engine_kwargs:
    swap_space: 4   # GiB
    # the last
  generation:
    generate_kwargs:
      # why not
      do_sample: true  # sample
    stopping_sequences: [a,
      b]
multiplex_config:  # nobody used it
  # at all
  max_num_models_per_replica: 4
scaling_config:
  num_workers: 2   # tensor parallel
  resources_per_worker:
    accelerator_type_a10: 0.01"""

EXPECTED = """\
# About the model
deployment_config:  # how it scales
  autoscaling_config:
    min_replicas: 1

    # how many each
    target_ongoing_requests: 24   # measured in May
    # how quick
    upscaling_factor: 0.6 # not faster
    downscaling_factor: 0.6
    # the end
  max_ongoing_requests : 64
  ray_actor_options: {resources: {accelerator_type:A10G: 0.001}}   # steering
engine_config:
  model_id: "a/b"   # public
  engine_kwargs: {}
    # GiB
    # the last
  generation:
    generate_kwargs: {}
      # why not
      # sample
    stopping_sequences: [a,
      b]
# nobody used it
# at all
scaling_config:
  num_workers: 2   # tensor parallel
  resources_per_worker:
    accelerator_type:A10G: 0.001"""


def test_comments_order_quotes_and_blank_lines_are_kept() -> None:
    assert fixed(COMMENTED) == EXPECTED


def test_windows_line_endings_are_kept() -> None:
    assert fixed(COMMENTED.replace("\n", "\r\n")) == EXPECTED.replace("\n", "\r\n")


def test_a_byte_order_mark_is_kept() -> None:
    assert fixed("\N{BYTE ORDER MARK}" + COMMENTED) == "\N{BYTE ORDER MARK}" + EXPECTED


def test_keys_move_into_sections_that_are_missing() -> None:
    text = (
        "engine_config:\n  model_id: a/b\n  type: TextGenerationInferenceEngine\n  scheduler:\n    policy:\n"
        "      max_batch_prefill_tokens: 6000  # tokens\n      max_total_tokens: 4096\n  model_init_kwargs:\n"
        "    trust_remote_code: true\nscaling_config: {num_workers: 1, num_gpus_per_worker: 0}\n"
    )
    after = fixed(text)
    assert parse_document(after.encode(), "m.yaml").data == {
        "engine_config": {
            "model_id": "a/b",
            "type": "VLLMEngine",
            "max_total_tokens": 4096,
            "engine_kwargs": {"max_num_batched_tokens": 6000, "trust_remote_code": True},
        },
        "scaling_config": {"num_workers": 1, "num_gpus_per_worker": 0},
    }
    assert "# tokens" in after


def test_everything_in_braces_is_rewritten() -> None:
    text = (
        "{deployment_config: {max_concurrent_queries: 9, user_config: {a: 1}, "
        "autoscaling_config: {smoothing_factor: 2}},"
        " engine_config: {model_id: a/b}, scaling_config: {pg_timeout_s: 5, num_workers: 1, num_gpus_per_worker: 0}}\n"
    )
    assert fixed(text) == (
        "{deployment_config: {max_ongoing_requests: 9, "
        "autoscaling_config: {upscaling_factor: 2, downscaling_factor: 2}},"
        " engine_config: {model_id: a/b}, scaling_config: {num_workers: 1, num_gpus_per_worker: 0}}\n"
    )


def test_names_that_anchors_share_are_left_alone_with_a_finding() -> None:
    text = "deployment_config: &a {max_concurrent_queries: 9}\nother: *a\n"
    with pytest.raises(InputErrors, match="through an anchor or a merge .* by hand: max_concurrent_queries"):
        fixed(text)


def test_a_file_with_todays_names_is_not_touched(tmp_path: Path) -> None:
    path = tmp_path / "m.yaml"
    path.write_text("engine_config: {model_id: a/b}\nscaling_config: {num_workers: 1, num_gpus_per_worker: 0}\n")
    before = path.stat().st_mtime_ns
    assert fix_file(path) == []
    assert path.stat().st_mtime_ns == before


def test_the_files_mode_and_a_link_to_it_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "m.yaml", tmp_path / "link.yaml"
    path.write_bytes(SHIPPED[0].read_bytes())
    path.chmod(0o640)
    link.symlink_to(path)
    assert fix_file(link)
    assert link.is_symlink() and stat.S_IMODE(path.stat().st_mode) == 0o640
    assert load_model(path)[0] is not None
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == [], "a temporary file is left"


def test_a_value_that_alone_would_end_a_document_stays_a_value() -> None:
    fixed, _ = fixed_text("deployment_config:\n  max_concurrent_queries: ...\n", "m.yaml")
    assert fixed == "deployment_config:\n  max_ongoing_requests: '...'\n"


@pytest.mark.parametrize("value", ["''", "[]", "{a: 1}"])
def test_a_mapping_whose_first_key_stands_after_a_question_mark_takes_new_keys(value: str) -> None:
    text = f"engine_config:\n  ? ''\n  : {value}\n  model_init_kwargs:\n    trust_remote_code: true\n"
    after = parse_document(fixed(text).encode(), "m.yaml").data
    assert after["engine_config"]["engine_kwargs"] == {"trust_remote_code": True}
    assert "" in after["engine_config"]


@pytest.mark.parametrize("start", ["engine_config: &a", "engine_config: !!map", "engine_config: &a !!map  # c"])
@pytest.mark.parametrize("entry", ["model_id: a/b", "sub: {}"])
def test_a_mapping_with_an_anchor_or_a_tag_takes_new_keys(start: str, entry: str) -> None:
    after = fixed(f"{start}\n  {entry}\n  model_init_kwargs:\n    trust_remote_code: true\n")
    assert set(after.splitlines()) == {start, f"  {entry}", "  engine_kwargs: {trust_remote_code: true}"}


def test_a_long_keys_new_names_stay_in_its_mapping() -> None:
    after = fixed("deployment_config:\n  autoscaling_config:\n    ? smoothing_factor\n    : 2\n    a: 1\n")
    assert parse_document(after.encode(), "m.yaml").data["deployment_config"]["autoscaling_config"] == {
        "upscaling_factor": 2,
        "downscaling_factor": 2,
        "a": 1,
    }


ADDITIONS: dict[KeyPath, Any] = {
    ("engine_config", "engine_kwargs", "a"): 1,
    ("engine_config", "engine_kwargs", "b"): {"c": ["d"]},
}


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "engine_config:\n  model_id: x  # why\n  engine_kwargs:\n    dtype: half # T4\n\n# end\n",
            "engine_config:\n  model_id: x  # why\n  engine_kwargs:\n    dtype: half # T4\n    a: 1\n"
            "    b: {c: [d]}\n\n# end\n",
        ),
        (
            "engine_config:\n  model_id: x\nscaling_config: {num_workers: 1}\n",
            "engine_config:\n  model_id: x\n  engine_kwargs:\n    a: 1\n    b: {c: [d]}\nscaling_config: {num_workers: 1}\n",
        ),
        ("engine_config: {model_id: x}\n", "engine_config: {model_id: x, engine_kwargs: {a: 1, b: {c: [d]}}}\n"),
        (
            "engine_config:\n  model_id: x\n  engine_kwargs: {}\n",
            "engine_config:\n  model_id: x\n  engine_kwargs: {a: 1, b: {c: [d]}}\n",
        ),
        (
            "engine_config:\r\n  model_id: x\r\n  engine_kwargs:\r\n    z: 0\r\n",
            "engine_config:\r\n  model_id: x\r\n  engine_kwargs:\r\n    z: 0\r\n    a: 1\r\n    b: {c: [d]}\r\n",
        ),
    ],
    ids=["block", "no section", "braces", "empty section", "CRLF"],
)
def test_added_entries_stand_where_a_person_would_write_them(before: str, after: str) -> None:
    assert text_with(before, "m.yaml", ADDITIONS) == after


def test_entries_are_not_added_to_what_another_section_shares() -> None:
    """The anchor's other user would get them too."""
    shared = "engine_config:\n  engine_kwargs: &k {z: 0}\n  runtime_env: *k\n"
    with pytest.raises(InputErrors, match="add these keys by hand: a, b"):
        text_with(shared, "m.yaml", ADDITIONS)
