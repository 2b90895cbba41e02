"""A failed start is one line that says what to do: the debugging cases of RayLLM's users."""

from __future__ import annotations

import pytest

from modelfleet.serving.explain import root_cause, sentence, way_out

LOG = """
(EngineCore pid=12) ERROR 11-24 10:00:00 [core.py:1] EngineCore failed to start.
(EngineCore pid=12) ERROR 11-24 10:00:00 [core.py:1] Traceback (most recent call last):
(EngineCore pid=12) ERROR 11-24 10:00:00 [core.py:1]   File "x.py", line 3, in f
(EngineCore pid=12) ERROR 11-24 10:00:00 [core.py:1] ValueError: No available memory for the cache blocks. Try more.
(EngineCore pid=12) Process EngineCore:
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}
"""


def test_the_cause_is_the_first_error_and_not_what_followed_from_it() -> None:
    assert root_cause(LOG) == "ValueError: No available memory for the cache blocks. Try more."


def test_the_sentence_names_model_cause_and_fix_in_one_line() -> None:
    error = RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    assert sentence("org/name", error, LOG) == (
        "vLLM cannot start org/name: ValueError: No available memory for the cache blocks. Try more; lower "
        "engine_config.max_total_tokens, or raise engine_kwargs.gpu_memory_utilization or num_workers"
    )


def test_an_error_of_our_own_process_needs_no_log() -> None:
    found = sentence("m", ValueError("User-specified max_model_len (9) is\n greater than the derived"), "")
    assert found.startswith("vLLM cannot start m: ValueError: User-specified max_model_len (9) is greater than")
    assert found.endswith("to the checkpoint's own limit")


def test_what_pydantic_adds_to_its_errors_is_left_out() -> None:
    error = ValueError(
        "1 validation error for VllmConfig x Value error, y is wrong. [type=value_error, input_value={}]"
    )
    assert sentence("org/name", error, "").startswith("vLLM cannot start org/name: ValueError: 1 validation error")
    assert "[type=" not in sentence("org/name", error, "") and "y is wrong; " in sentence("org/name", error, "")


def test_an_unknown_cause_points_to_the_log() -> None:
    assert sentence("m", KeyError("x"), "").endswith("see the replica's log")


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("CUDA out of memory. Tried to allocate 2 GiB", "gpu_memory_utilization"),
        ("No CUDA GPUs are available", "num_gpus_per_worker"),
        ("NCCL error: unhandled system error", "NCCL_DEBUG"),
        ("RuntimeError: Could not find nvcc and default cuda_home='/usr/local/cuda' doesn't exist", "no nvcc"),
        ("/bin/sh: 1: /usr/local/cuda/bin/nvcc: not found", "no nvcc"),
        ("/tmp/x/cuda_utils.c:9:10: fatal error: Python.h: No such file or directory", "python3-dev"),
        ("RuntimeError: Failed to find C compiler. Please specify via CC environment variable", "C compiler"),
        ("RuntimeError: The NVIDIA driver on your system is too old (found version 12080).", "newer driver"),
        ("CUDA driver version is insufficient for CUDA runtime version", "newer driver"),
        ("CUDA error: no kernel image is available for execution on the device", "no kernels for this GPU"),
        ("RuntimeError: Device string must not be empty", "no GPU's driver"),
        ("AssertionError: Error in memory profiling. Initial free memory 1.0 GiB", "while vLLM measured"),
        ("[enforce fail at alloc_cpu.cpp:1] DefaultCPUAllocator: can't allocate memory", "the node's own memory"),
        ("OSError: [Errno 12] Cannot allocate memory", "the node's own memory"),
        ("MemoryError: ", "the node's own memory"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "gpu_memory_utilization"),
        (
            "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -9}",
            "node's own",
        ),
        ("Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': -11}", "Xid"),
        ("Worker proc VllmWorker-1 died unexpectedly (exit code: -9), shutting down executor.", "node's own"),
        ("Bfloat16 is only supported on GPUs with compute capability of at least 8.0", "dtype: half"),
        ("Please pass the argument `trust_remote_code=True`", "trust_remote_code: true"),
        ("The repository a/b contains custom code which must be executed to", "trust_remote_code: true"),
        ("Total number of attention heads (9) must be divisible by tensor parallel size (2).", "num_workers"),
        ("[Errno 28] No space left on device", "larger disk"),
        ("Model architectures ['X'] are not supported for now.", "architecture"),
        ("Model architecture X was supported in vLLM until v0.9, and is not supported anymore", "architecture"),
        ("The Transformers implementation of 'X' is not compatible with vLLM.", "architecture"),
        ("on startup is less than the engine's budget after excluding", "gpu_memory_utilization"),
    ],
)
def test_known_causes_have_their_fix(text: str, word: str) -> None:
    assert word in (way_out(text) or "")


WORKING = """
(EngineCore pid=12) INFO 11-24 10:00:00 [core.py:1] Initializing a V1 LLM engine with config: trust_remote_code=False
(EngineCore pid=12) INFO 11-24 10:00:00 [parallel_state.py:1] world_size=2 rank=0 backend=nccl
(EngineCore pid=12) WARNING 11-24 10:00:00 [cuda.py:1] the card has compute capability 7.5
"""
WRAPPED = RuntimeError(
    "Engine core initialization failed. See root cause above. Failed core proc(s): {'EngineCore': 1}"
)


def test_lines_that_tell_of_no_failure_give_no_advice() -> None:
    """Each unknown failure said that workers cannot reach each other, because vLLM's log names its backend."""
    log = WORKING + "(EngineCore pid=12) ERROR 11-24 10:00:01 [core.py:1] KeyError: 'x'\n"
    assert sentence("m", WRAPPED, log) == "vLLM cannot start m: KeyError: 'x'; see the replica's log"


def test_what_a_compiler_said_before_python_gave_up_counts() -> None:
    log = WORKING + (
        "/tmp/x/cuda_utils.c:9:10: fatal error: Python.h: No such file or directory\n"
        "(EngineCore pid=12) ERROR 11-24 10:00:01 [core.py:1] torch._inductor.exc.InductorError: CalledProcessError\n"
    )
    found = sentence("m", WRAPPED, log)
    assert found.startswith("vLLM cannot start m: InductorError: CalledProcessError; the image has no C compiler or no")


def test_a_process_that_ended_without_a_word_was_probably_killed() -> None:
    """The kernel kills a worker that loads while memory runs out: vLLM then only says that it did not start."""
    log = WORKING + "Exception: WorkerProc initialization failed due to an exception in a background process. See\n"
    assert "killed because the node's memory ran out" in sentence("m", WRAPPED, log)
