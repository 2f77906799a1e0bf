"""Text generation: tokens a second and time to the first token, straight and through the gateway.

    .venv/bin/python bench/text.py [--rounds 3] [--tokens 64]

A GPT-2 of 4 layers and 256 dimensions with random weights (so that the model is cheap and what we add shows),
greedy, prompts of 8 tokens, 1 and 4 streams at a time, one thread. Beside it the library alone:
transformers' own `generate` in a loop. Needs `make dev-text`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import harness
import httpx

STREAMS = (1, 4)
PROMPT = list(range(10, 18))
LIBRARY = "transformers' generate"

MAKE = """
import sys, torch, transformers as t
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
torch.manual_seed(0)
alphabet = {c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
raw = Tokenizer(models.BPE(alphabet, []))
raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
raw.decoder = decoders.ByteLevel()
t.PreTrainedTokenizerFast(tokenizer_object=raw).save_pretrained(sys.argv[1])
config = t.GPT2Config(vocab_size=8192, n_embd=256, n_layer=4, n_head=4, n_positions=1024,
                      bos_token_id=None, eos_token_id=None)
t.GPT2LMHeadModel(config).save_pretrained(sys.argv[1])
"""

GENERATE = """
import sys, time, json, torch, transformers as t
torch.set_num_threads(1)
model = t.AutoModelForCausalLM.from_pretrained(sys.argv[1]).eval()
tokens, prompt = int(sys.argv[2]), torch.tensor([json.loads(sys.argv[3])])
with torch.inference_mode():
    model.generate(prompt, max_new_tokens=8, do_sample=False, pad_token_id=0)
    began = time.perf_counter()
    for _ in range(4):
        model.generate(prompt, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
print(4 * tokens / (time.perf_counter() - began))
"""


def _program(source: str, *args: str) -> str:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", source, *args],
        check=True, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
    )  # fmt: skip
    return done.stdout


async def _stream(client: httpx.AsyncClient, url: str, tokens: int) -> tuple[float, int]:
    """(seconds to the first event with text, tokens of the answer)."""
    body = {
        "prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    began, first, counted = time.perf_counter(), 0.0, 0
    async with client.stream("POST", url, json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            first = first or time.perf_counter() - began
            usage = json.loads(line[6:]).get("usage")
            counted = usage["completion_tokens"] if usage else counted
    return first, counted


async def measure(url: str, streams: int, tokens: int) -> tuple[float, float]:
    """(tokens a second of all streams together, median milliseconds to the first token)."""
    async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=64)) as client:
        await asyncio.gather(*(_stream(client, url, 4) for _ in range(streams)))
        began = time.perf_counter()
        answers = [
            answer
            for _ in range(4)
            for answer in await asyncio.gather(*(_stream(client, url, tokens) for _ in range(streams)))
        ]
        seconds = time.perf_counter() - began
    return sum(count for _, count in answers) / seconds, statistics.median(
        first for first, _ in answers
    ) * 1000


@contextlib.contextmanager
def sides(model: Path) -> Iterator[dict[str, str]]:
    """Both ways to the same model: names and addresses."""
    body = b'{"instances": ["abc"]}'
    with (
        harness.model_server(
            model, name="text", model_format="huggingface", body=body, threads=1
        ) as straight,
        harness.inferplane_platform() as platform,
    ):
        spec = {"modelName": "huggingface", "storageURI": str(model), "resources": {"cpu": "1"}}
        status, content = platform.call(
            "POST", "inference-endpoint", {"endpointName": "text", "workspace": "default", "modelSpec": spec}
        )
        if status != 200:
            raise SystemExit(f"not accepted: {content}")
        through = f"{platform.gateway}/serving/default/text"
        deadline = time.monotonic() + 180
        while httpx.get(f"{through}/v1/models/text").status_code != 200:
            if time.monotonic() > deadline:
                raise SystemExit("the endpoint does not answer")
            time.sleep(0.2)
        yield {
            "inferplane, straight": straight.url.replace("/v1/models/text:predict", "/v1/completions"),
            "inferplane, through its gateway": f"{through}/v1/completions",
        }


def main() -> None:
    """Measure, and publish."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()
    rates: dict[tuple[str, int], list[float]] = {}
    firsts: dict[tuple[str, int], list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="ip-") as folder:
        model = Path(folder)
        _program(MAKE, folder)
        with sides(model) as ways:
            for number in range(options.rounds):
                alone = float(_program(GENERATE, folder, str(options.tokens), json.dumps(PROMPT)))
                rates.setdefault((LIBRARY, 1), []).append(alone)
                print(f"round {number + 1}  {LIBRARY}: {alone:.0f} tokens/s", flush=True)
                for name, url in ways.items():
                    for streams in STREAMS:
                        rate, first = asyncio.run(measure(url, streams, options.tokens))
                        rates.setdefault((name, streams), []).append(rate)
                        firsts.setdefault((name, streams), []).append(first)
                        print(f"round {number + 1}  {name}, {streams}: {rate:.0f} tokens/s, {first:.1f} ms")

    def cell(found: dict[tuple[str, int], list[float]], name: str, streams: int, digits: int) -> str:
        values = found.get((name, streams))
        return harness.Spread(tuple(values)).show(digits) if values else ""

    rows = [
        [name, *(cell(rates, name, n, 0) for n in STREAMS), *(cell(firsts, name, n, 1) for n in STREAMS)]
        for name in (LIBRARY, *dict.fromkeys(name for name, _ in firsts))
    ]
    head = ["", *(f"tokens/s, {n}" for n in STREAMS), *(f"ms to the first token, {n}" for n in STREAMS)]
    harness.publish(
        "text",
        f"{harness.machine()}; {options.rounds} rounds of {options.tokens} tokens, one thread; "
        f"streams at a time {STREAMS[0]} and {STREAMS[1]}; median (least to most).\n\n"
        + harness.table(head, rows),
    )


if __name__ == "__main__":
    main()
