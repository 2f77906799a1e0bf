"""A program for an environment of its own: other people's clients, used as their documentation says.

    python foreign_clients.py GATEWAY PART       PART: numbers (endpoint iris) or texts (minilm and chat)

Prints what it got as JSON.
"""

from __future__ import annotations

import asyncio
import json
import sys
from typing import Any

ROWS = [[5.1, 3.5, 1.4, 0.2], [6.7, 3.0, 5.2, 2.3]]
TEXTS = ["a cat sits", "a kitten is sitting", "stock markets fell"]


def main(gateway: str, part: str) -> None:
    result = numbers(gateway) if part == "numbers" else texts(gateway)
    print(json.dumps(result))


def numbers(gateway: str) -> dict[str, Any]:
    base = f"{gateway}/serving/default/iris"
    return {"kserve": asyncio.run(_kserve(base)), "triton": _triton(base)}


async def _kserve(base: str) -> dict[str, Any]:
    from kserve import InferenceRESTClient, InferInput, InferRequest, RESTConfig

    old = InferenceRESTClient(RESTConfig(protocol="v1"))
    new = InferenceRESTClient(RESTConfig(protocol="v2"))
    tensor = InferInput("input-0", [2, 4], "FP64")
    tensor.set_data_from_numpy(_array("float64"), binary_data=True)
    answer = await new.infer(base, InferRequest("iris", [tensor]), model_name="iris")
    return {
        "v1": (await old.infer(base, {"instances": ROWS}, model_name="iris"))["predictions"],
        "v2": answer.outputs[0].as_numpy().tolist(),
        "ready": [await new.is_server_ready(base), await new.is_model_ready(base, "iris")],
        "live": await new.is_server_live(base),
    }


def _triton(base: str) -> dict[str, Any]:
    import tritonclient.http as triton

    client = triton.InferenceServerClient(base.removeprefix("http://"))
    answers = []
    for binary in (True, False):
        tensor = triton.InferInput("input-0", [2, 4], "FP32")
        tensor.set_data_from_numpy(_array("float32"), binary_data=binary)
        wanted = triton.InferRequestedOutput("predict", binary_data=binary)
        answers.append(client.infer("iris", [tensor], outputs=[wanted]).as_numpy("predict").tolist())
    return {
        "answers": answers,
        "live": [client.is_server_live(), client.is_server_ready(), client.is_model_ready("iris")],
        "metadata": client.get_model_metadata("iris")["inputs"][0]["name"],
        "server": client.get_server_metadata()["name"],
    }


def texts(gateway: str) -> dict[str, Any]:
    import numpy as np
    import openai
    import tritonclient.http as triton

    embeddings = openai.OpenAI(base_url=f"{gateway}/serving/default/minilm/v1", api_key="none")
    vectors = np.array(
        [each.embedding for each in embeddings.embeddings.create(model="minilm", input=TEXTS).data]
    )
    client = triton.InferenceServerClient(f"{gateway}/serving/default/minilm".removeprefix("http://"))
    tensor = triton.InferInput("input-0", [3], "BYTES")
    tensor.set_data_from_numpy(np.array(TEXTS, dtype=object))
    same = client.infer("minilm", [tensor]).as_numpy("embedding")
    chat = openai.OpenAI(base_url=f"{gateway}/serving/default/chat/openai/v1", api_key="none")
    wanted: dict[str, Any] = {
        "model": "chat",
        "messages": [{"role": "user", "content": "the cat"}],
        "temperature": 0,
        "max_tokens": 20,
    }
    answer = chat.chat.completions.create(**wanted)
    whole = answer.choices[0].message.content
    pieces = [
        chunk.choices[0].delta.content or "" for chunk in chat.chat.completions.create(**wanted, stream=True)
    ]
    try:
        chat.chat.completions.create(**{**wanted, "model": "gpt-4"})
        refused = ""
    except openai.NotFoundError as error:
        refused = str(error.code)
    return {
        "shape": list(vectors.shape),
        "alike": float(vectors[0] @ vectors[1]),
        "unlike": float(vectors[0] @ vectors[2]),
        "same": bool(np.allclose(same, vectors, atol=1e-5)),
        "whole": whole,
        "tokens": answer.usage.total_tokens,
        "pieces": pieces,
        "models": [model.id for model in chat.models.list()],
        "refused": refused,
    }


def _array(dtype: str) -> Any:
    import numpy as np

    return np.array(ROWS, dtype=dtype)


if __name__ == "__main__":
    main(*sys.argv[1:])
