"""What vLLM's `LLM` is opened with goes in, by name; what this engine does about it comes out."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...checkpoint import resolve
from ...errors import ParameterError
from ...json_values import read_json
from .sampling_params import SamplingParams

# What can be had of an argument whose other values would change results. The first is the default.
ONLY: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("quantization", "rope_theta", "hf_config_path"), (None,)),
    **dict.fromkeys(("rope_scaling", "rope_parameters", "hf_overrides"), (None, {})),
    **dict.fromkeys(("skip_tokenizer_init", "disable_sliding_window", "enable_lora"), (False,)),
    **dict.fromkeys(("enable_prompt_adapter", "enable_prompt_embeds"), (False,)),
    "tokenizer_mode": ("auto", "hf", "slow"),
    "load_format": ("auto", "safetensors"),
    "config_format": ("auto", "hf"),
    "kv_cache_dtype": ("auto",),
    "logprobs_mode": ("raw_logprobs",),
    "logits_processors": (None, []),
    "task": ("auto", "generate"),
    "runner": ("auto", "generate"),
    "model_impl": ("auto", "vllm"),
    "hf_token": (None, True),
}
# The same of `generate` and `chat`.
CALLS: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("lora_request", "priority", "prompt_adapter_request"), (None,)),
    **dict.fromkeys(("guided_options_request", "tools"), (None,)),
    **dict.fromkeys(("mm_processor_kwargs", "tokenization_kwargs"), (None, {})),
    "chat_template_content_format": ("auto", "string"),
}
# And of the calls of a tokenizer, where transformers has them: nothing is padded, cut or cleaned.
TEXTS: Mapping[str, tuple[object, ...]] = {
    **dict.fromkeys(("padding", "truncation", "clean_up_tokenization_spaces"), (None, False)),
    **dict.fromkeys(("max_length", "return_tensors", "text_pair", "tools", "documents"), (None,)),
    **dict.fromkeys(("return_attention_mask", "return_token_type_ids"), (None, False)),
}
# How many devices share the work. There is one, and the results are those of any number.
DEVICES = ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size")
# What neither changes a result nor has a meaning here, with vLLM's default.
UNUSED: Mapping[str, object] = {
    **dict.fromkeys(DEVICES, 1),
    "gpu_memory_utilization": 0.9,
    "swap_space": 4,
    "cpu_offload_gb": 0,
    "max_seq_len_to_capture": 8192,
    "disable_log_stats": True,
    "allowed_local_media_path": "",
    "scheduling_policy": "fcfs",
    **dict.fromkeys(("trust_remote_code", "enforce_eager", "disable_custom_all_reduce"), False),
    **dict.fromkeys(("disable_async_output_proc", "disable_cascade_attn"), False),
    **dict.fromkeys(("async_scheduling", "enable_sleep_mode", "use_v2_block_manager"), False),
    **dict.fromkeys(("enable_prefix_caching", "enable_chunked_prefill"), True),  # always
    **dict.fromkeys(("block_size", "max_num_batched_tokens", "num_gpu_blocks_override"), None),
    **dict.fromkeys(("distributed_executor_backend", "compilation_config", "worker_cls"), None),
    **dict.fromkeys(("max_parallel_loading_workers", "limit_mm_per_prompt"), None),
    **dict.fromkeys(("mm_processor_kwargs", "speculative_config", "ignore_patterns"), None),
    **dict.fromkeys(("guided_decoding_backend", "structured_outputs_config"), None),
    **dict.fromkeys(("code_revision", "prefix_caching_hash_algo"), None),
    **dict.fromkeys(("attention_backend", "attention_config", "profiler_config"), None),
    **dict.fromkeys(("served_model_name", "max_loras", "max_lora_rank", "max_cpu_loras"), None),
    **dict.fromkeys(("preemption_mode", "num_scheduler_steps", "num_lookahead_slots"), None),
    **dict.fromkeys(("scheduler_delay_factor", "tokenizer_pool_size", "kv_transfer_config"), None),
    **dict.fromkeys(("max_num_partial_prefills", "max_long_partial_prefills"), None),
    **dict.fromkeys(("long_prefill_token_threshold", "max_context_len_to_capture"), None),
    **dict.fromkeys(("model_loader_extra_config", "use_tqdm_on_load", "additional_config"), None),
    **dict.fromkeys(("disable_log_requests", "enable_expert_parallel"), None),
}
DTYPES = {"half": "float16", "float": "float32"}  # other names for the same
# What a model's generation_config.json may say of sampling, and vLLM's names of it.
DEFAULTS = {name: name for name in ("repetition_penalty", "temperature", "top_k", "top_p", "min_p")}
DEFAULTS |= {"max_new_tokens": "max_tokens"}


def check_others(others: Mapping[str, Any]) -> list[str]:
    """What of them has no meaning here, as `name=value`. ParameterError names the first that
    cannot be had, or that vLLM does not have."""
    unused = {name: value for name, value in others.items() if name in UNUSED}
    check_only({name: value for name, value in others.items() if name not in unused}, ONLY)
    asked = [f"{n}={value!r}" for n, value in unused.items() if value not in (None, UNUSED[n])]
    one = "there is one device, and it gives the results of any number"
    return [*asked, one] if any(text.partition("=")[0] in DEVICES for text in asked) else asked


def check_only(others: Mapping[str, Any], table: Mapping[str, tuple[object, ...]]) -> None:
    """ParameterError where a name or its value is not in `table`."""
    for name, value in others.items():
        if name not in table:
            raise ParameterError(f"{name}={value!r}: no argument of vLLM that is known here")
        if value not in table[name]:
            raise ParameterError(
                f"{name}={value!r}: not implemented here, and it would change results; there is "
                + " or ".join(map(repr, table[name]))
            )


def model_folder(
    model: str | Path,
    tokenizer: str | Path | None,
    revision: str | None,
    tokenizer_revision: str | None,
    download_dir: str | Path | None,
) -> Path:
    """The model's folder: itself, or what the hub has sent to `download_dir`.

    ParameterError where the tokenizer would be another one than the model's own.
    """
    if tokenizer_revision not in (None, revision):
        raise ParameterError(f"tokenizer_revision={tokenizer_revision!r}: must be {revision=}")
    same = tokenizer is None or str(tokenizer) == str(model)
    if not same and Path(str(tokenizer)).resolve() != Path(model).resolve():
        raise ParameterError(
            f"tokenizer={str(tokenizer)!r}: a model is read with its own tokenizer; leave it out, "
            f"or put its files into the folder {str(model)!r}"
        )
    return resolve(model, revision=revision, cache_dir=download_dir)


def dtype_name(dtype: object) -> str:
    """ "half" and `torch.float16` are "float16"."""
    name = str(dtype).removeprefix("torch.")
    return DTYPES.get(name, name)


def default_params(
    folder: Path, source: str | Path, override: Mapping[str, object] | None
) -> SamplingParams:
    """For who gives none: what generation_config.json says, with `override` before it.

    `source`: "auto" = that of the model, where it has one; "vllm" = none; or a folder with one.
    """
    file = (folder if source == "auto" else Path(source)) / "generation_config.json"
    skip = source == "vllm" or (source == "auto" and not file.is_file())
    said = {**({} if skip else read_json(file)), **(override or {})}
    known = ((own, said.get(name)) for name, own in DEFAULTS.items())
    asked: dict[str, Any] = {name: value for name, value in known if value is not None}
    return SamplingParams(**asked)
