"""Answers the queries of a file with a URIAL prefix, written for vLLM as its users write scripts.

Nothing in it knows of urial-engine: the tests run it as it is under the launcher.
"""
# ruff: noqa: B905, PTH110, PTH123

import argparse
import json
import os

from vllm import LLM, SamplingParams


def parse_args():
    parser = argparse.ArgumentParser()
    parser.add_argument("--model_name", required=True)
    parser.add_argument("--tokenizer_name", default="auto")
    parser.add_argument("--tensor_parallel_size", type=int, default=1)
    parser.add_argument("--download_dir", default=None)
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--tokenizer_mode", default="auto")
    parser.add_argument("--queries", required=True)
    parser.add_argument("--urial", required=True)
    parser.add_argument("--batch_size", type=int, default=1)
    parser.add_argument("--num_outputs", type=int, default=1)
    parser.add_argument("--temperature", type=float, default=0)
    parser.add_argument("--top_p", type=float, default=1)
    parser.add_argument("--repetition_penalty", type=float, default=1)
    parser.add_argument("--max_tokens", type=int, default=7500)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--filepath", required=True)
    return parser.parse_args()


def save(filepath, rows):
    with open(filepath, "w") as file:
        json.dump(rows, file, indent=2)


if __name__ == "__main__":
    args = parse_args()
    if args.tokenizer_name == "auto":
        args.tokenizer_name = args.model_name
    llm = LLM(
        model=args.model_name,
        tokenizer=args.tokenizer_name,
        tensor_parallel_size=args.tensor_parallel_size,
        download_dir=args.download_dir,
        dtype=args.dtype,
        tokenizer_mode=args.tokenizer_mode,
        gpu_memory_utilization=0.8,
    )
    tokenizer = llm.get_tokenizer()

    with open(args.queries) as file:
        queries = [line.strip() for line in file if line.strip()]
    with open(args.urial) as file:
        prefix = file.read()
    prompts = [f"{prefix}\n# Query:\n```\n{q}\n```\n\n# Answer:\n```\n" for q in queries]

    params = SamplingParams(
        n=args.num_outputs,
        top_p=args.top_p,
        temperature=args.temperature,
        repetition_penalty=args.repetition_penalty,
        max_tokens=args.max_tokens,
        seed=args.seed,
        include_stop_str_in_output=False,
    )
    params.stop = ["# Query", "# User"]
    if tokenizer.eos_token_id is not None:
        params.stop_token_ids = [tokenizer.eos_token_id]

    rows = []
    if os.path.exists(args.filepath):
        with open(args.filepath) as file:
            rows = json.load(file)
    for start in range(len(rows), len(prompts), args.batch_size):
        batch = prompts[start : start + args.batch_size]
        outputs = llm.generate(batch, params, use_tqdm=False)
        for query, output in zip(queries[start:], outputs):
            assert output.prompt in prompts
            assert output.prompt_token_ids == tokenizer.encode(output.prompt)
            rows.append(
                {
                    "instruction": query,
                    "output": [o.text for o in output.outputs],
                    "token_ids": [list(o.token_ids) for o in output.outputs],
                    "finish_reason": [o.finish_reason for o in output.outputs],
                    "generator": args.model_name,
                    "cached": output.num_cached_tokens,
                }
            )
        save(args.filepath, rows)
    print(f"{len(rows)} answers in {args.filepath}")
