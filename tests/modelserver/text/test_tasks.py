"""Every task over V1 and V2, against what the library answers to each text alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

ServingText = Callable[..., Any]


def _texts(expected: dict[str, Any]) -> list[str]:
    texts: list[str] = expected["texts"]
    return texts


def _bytes(texts: list[str]) -> dict[str, Any]:
    return {"name": "input-0", "datatype": "BYTES", "shape": [len(texts)], "data": texts}


def _softmax(rows: Any) -> Any:
    shares = np.exp(np.array(rows))
    return shares / shares.sum(-1, keepdims=True)


def test_a_classifier_answers_labels_and_with_probabilities_shares(
    serving_text: ServingText, expected: dict[str, Any]
) -> None:
    server, texts = serving_text("classifier"), _texts(expected)
    labels = ["calm", "glad", "sad"]
    wanted = [labels[int(np.argmax(row))] for row in expected["classifier"]]
    assert server.predict(texts).json() == {"predictions": wanted}
    shares = server.predict(texts, parameters={"probabilities": True}).json()["predictions"]
    assert np.allclose(shares, _softmax(expected["classifier"]), atol=1e-5)
    answer = server.infer(_bytes(texts)).json()
    by_name = {output["name"]: output for output in answer["outputs"]}
    assert by_name["predict"]["data"] == wanted
    assert by_name["predict_proba"]["shape"] == [len(texts), 3]


def test_one_label_is_a_number(serving_text: ServingText, expected: dict[str, Any]) -> None:
    answer = serving_text("regressor").predict(_texts(expected)).json()
    assert np.allclose(answer["predictions"], np.array(expected["regressor"])[:, 0], atol=1e-4)


def test_a_tagger_names_the_words_it_found(serving_text: ServingText, expected: dict[str, Any]) -> None:
    server, texts = serving_text("tagger"), _texts(expected)
    tags = ["O", "PER", "LOC"]
    rows = server.predict(texts).json()["predictions"]
    for text, row, logits in zip(texts, rows, expected["tagger"], strict=True):
        shares = _softmax(logits)[1:-1]  # without the special tokens at both ends
        wanted = [(tags[int(each.argmax())], place) for place, each in enumerate(shares, 1) if each.argmax()]
        assert [(entry["entity"], entry["index"]) for entry in row] == wanted
        assert all(text[entry["start"] : entry["end"]] == entry["word"] for entry in row)
    (output,) = server.infer(_bytes(texts)).json()["outputs"]
    assert [json.loads(row) for row in output["data"]] == rows


@pytest.mark.parametrize("mask", ["[MASK]", "<mask>"])
def test_a_mask_is_filled_with_the_likeliest_words(
    serving_text: ServingText, expected: dict[str, Any], mask: str
) -> None:
    server = serving_text("filler")
    (row,) = server.predict([f"the cat {mask} on the mat ."]).json()["predictions"]
    assert [row[0]["token_str"], pytest.approx(row[0]["score"], rel=1e-4)] == expected["filler"]
    assert len(row) == 5
    assert [each["score"] for each in row] == sorted((each["score"] for each in row), reverse=True)
    (both,) = server.predict([f"{mask} {mask}"]).json()["predictions"]
    assert [len(each) for each in both] == [5, 5]
    refused = server.predict(["there is none"])
    assert refused.status_code == 400
    assert "no [MASK] to fill" in refused.json()["error"]


def test_embeddings_without_other_files_are_the_mean_normalised(
    serving_text: ServingText, expected: dict[str, Any]
) -> None:
    server, texts = serving_text("plain-embedder"), _texts(expected)
    vectors = server.predict(texts).json()["predictions"]
    assert np.allclose(vectors, expected["plain-embedder"], atol=1e-5)
    (output,) = server.infer(_bytes(texts)).json()["outputs"]
    assert (output["name"], output["datatype"], output["shape"]) == ("embedding", "FP32", [4, 32])


async def test_texts_of_many_callers_share_batches_and_keep_their_answers(
    serving_text: ServingText, expected: dict[str, Any]
) -> None:
    server, texts = serving_text("plain-embedder"), _texts(expected)
    transport = httpx.AsyncHTTPTransport(uds=server.config["address"].removeprefix("unix:"))
    async with httpx.AsyncClient(transport=transport, base_url="http://model", timeout=60) as client:
        bodies = [{"instances": [texts[i % 4], texts[(i + 1) % 4]]} for i in range(60)]
        path = f"/v1/models/{server.name}:predict"
        answers = await asyncio.gather(*(client.post(path, json=body) for body in bodies))
    wanted = np.array(expected["plain-embedder"])
    for index, answer in enumerate(answers):
        rows = answer.json()["predictions"]
        assert np.allclose(rows, wanted[[index % 4, (index + 1) % 4]], atol=1e-5)


def test_what_is_longer_than_the_model_takes_is_cut_off(serving_text: ServingText) -> None:
    server = serving_text("plain-embedder")
    long, cut = " ".join(["cat"] * 100), " ".join(["cat"] * 30)
    first, second = server.predict([long, cut]).json()["predictions"]
    assert np.allclose(first, second, atol=1e-6)


def test_text_is_the_only_input(serving_text: ServingText) -> None:
    server = serving_text("classifier")
    refused = server.predict([[1, 2]])
    assert refused.status_code == 400
    assert "takes text" in refused.json()["error"]
    refused = server.infer({"name": "x", "datatype": "FP32", "shape": [1], "data": [1.0]})
    assert refused.status_code == 400


def test_a_generating_model_continues_texts_over_v1_too(
    serving_text: ServingText, expected: dict[str, Any]
) -> None:
    (text,) = serving_text("continuer").predict(["the cat"]).json()["predictions"]
    assert text
    # Sixteen tokens of the twenty-four; the last character may be cut in its middle.
    assert expected["continuer"].startswith(text.rstrip("\ufffd"))


def test_the_status_says_which_protocols_a_model_speaks(serving_text: ServingText) -> None:
    assert serving_text("classifier").status()["model"]["protocols"] == ["v1", "v2"]
    assert serving_text("chat").status()["model"]["protocols"] == ["v1", "v2", "openai"]
    assert serving_text("plain-embedder").status()["model"]["protocols"] == ["v1", "v2", "openai"]


def test_metadata_says_that_a_row_is_a_text(serving_text: ServingText) -> None:
    answer = serving_text("classifier").client.get("/v2/models/classifier").json()
    assert answer["platform"] == "huggingface_transformers"
    assert answer["inputs"] == [{"name": "input-0", "datatype": "BYTES", "shape": [-1]}]


@pytest.mark.parametrize(
    ("args", "change", "reason", "words"),
    [
        ([], {"architectures": ["WhisperForConditionalGeneration"]}, "UnsupportedFormat", "WhisperFor"),
        ([], {"architectures": None}, "ModelLoadFailed", "--task="),
        (["--task=dance"], {}, "ModelLoadFailed", "'dance'"),
        ([], {"model_type": "no-such-thing"}, "ModelLoadFailed", "could not be loaded"),
    ],
)
def test_what_cannot_be_served_says_why(
    launch: Callable[..., Any],
    text_parent: Any,
    text_models: Path,
    tmp_path: Path,
    args: list[str],
    change: dict[str, Any],
    reason: str,
    words: str,
) -> None:
    for file in (text_models / "classifier").iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    status = launch("huggingface", tmp_path, parent=text_parent, args=args).wait_for("ready", "failed")
    assert (status["state"], status["reason"]) == ("failed", reason)
    assert words in status["message"]


def test_an_argument_overrules_the_architecture(
    launch: Callable[..., Any], text_parent: Any, text_models: Path
) -> None:
    server = launch(
        "huggingface", text_models / "classifier", parent=text_parent, args=["--task", "text_embedding"]
    )
    assert server.wait_for("ready", "failed")["state"] == "ready", server.log()
    assert len(server.predict(["a cat"]).json()["predictions"][0]) == 32
