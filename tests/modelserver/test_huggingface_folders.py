"""What is read from a Hugging Face folder and a manifest's arguments, without any library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferplane.modelserver.errors import LoadError
from inferplane.modelserver.frameworks.huggingface import (
    Options,
    Pooling,
    Task,
    find_folder,
    parse_args,
    plain_chat,
    portions,
    read_pooling,
    task_of,
)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertForSequenceClassification", Task.TEXT_CLASSIFICATION),
        ("DistilBertForTokenClassification", Task.TOKEN_CLASSIFICATION),
        ("RobertaForMaskedLM", Task.FILL_MASK),
        ("LlamaForCausalLM", Task.TEXT_GENERATION),
        ("GPT2LMHeadModel", Task.TEXT_GENERATION),
        ("BertModel", Task.EMBEDDINGS),
    ],
)
def test_the_architecture_tells_the_task(architecture: str, task: Task) -> None:
    assert task_of({"architectures": [architecture]}, embeds=False) is task
    assert task_of({"architectures": [architecture]}, embeds=True) is Task.EMBEDDINGS


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "BertForQuestionAnswering", ""])
def test_other_tasks_are_refused_with_those_that_are_served(architecture: str) -> None:
    with pytest.raises(LoadError, match="text-generation"):
        task_of({"architectures": [architecture]}, embeds=False)


@pytest.mark.parametrize(
    ("args", "options"),
    [
        ([], Options()),
        (["--task=ner"], Options(Task.TOKEN_CLASSIFICATION)),
        (["--task", "sequence_classification"], Options(Task.TEXT_CLASSIFICATION)),
        (["--dtype=bfloat16", "--max_length", "128"], Options(dtype="bfloat16", length=128)),
        (["--max-model-len=64", "--return_probabilities"], Options(length=64, probabilities=True)),
        (["--return-probabilities=false", "--backend=vllm", "--model_name", "x"], Options()),
    ],
)
def test_arguments_are_read_in_every_spelling(args: list[str], options: Options) -> None:
    assert parse_args(args) == options


@pytest.mark.parametrize("args", [["--max_length=many"], ["--max_length=0"], ["--dtype=int4"], ["--task="]])
def test_arguments_that_mean_nothing_are_refused(args: list[str]) -> None:
    with pytest.raises(LoadError):
        parse_args(args)


@given(st.lists(st.integers(1, 600), max_size=60), st.integers(1, 2000), st.none() | st.integers(1, 8))
def test_portions_hold_every_row_once_and_stay_small(lengths: list[int], most: int, rows: int | None) -> None:
    groups = portions(lengths, most, rows)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group in groups:
        size = len(group) * max(lengths[index] for index in group)
        assert size <= most or len(group) == 1
        assert rows is None or len(group) <= rows


def _write(folder: Path, files: dict[str, Any]) -> Path:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps(content))
    return folder


_MODULES = [{"type": "sentence_transformers.models.Transformer", "path": ""},
            {"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}]  # fmt: skip
_NORMALIZE = {"type": "sentence_transformers.models.Normalize", "path": "2_Normalize"}


def test_pooling_is_read_from_sentence_transformers_files(tmp_path: Path) -> None:
    assert read_pooling(tmp_path) == Pooling(("mean",), normalise=True)
    _write(
        tmp_path,
        {
            "modules.json": [*_MODULES, _NORMALIZE],
            "1_Pooling/config.json": {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True},
            "sentence_bert_config.json": {"max_seq_length": 128, "do_lower_case": True},
            "config_sentence_transformers.json": {"prompts": {"q": "query: "}, "default_prompt_name": "q"},
        },
    )
    assert read_pooling(tmp_path) == Pooling(("cls", "mean"), True, 128, True, "query: ")


@pytest.mark.parametrize(
    "files",
    [
        {"modules.json": _MODULES[:1]},
        {"modules.json": [*_MODULES, {"type": "sentence_transformers.models.Dense", "path": "3"}],
         "1_Pooling/config.json": {"pooling_mode_mean_tokens": True}},
        {"modules.json": _MODULES, "1_Pooling/config.json": {"pooling_mode_weightedmean_tokens": True}},
        {"modules.json": _MODULES, "1_Pooling/config.json": {}},
        {"modules.json": _MODULES},
        {"modules.json": {"no": "list"}},
    ],
)  # fmt: skip
def test_what_would_give_other_vectors_is_refused(tmp_path: Path, files: dict[str, Any]) -> None:
    with pytest.raises(LoadError):
        read_pooling(_write(tmp_path, files))


def test_the_folder_is_the_one_with_a_configuration(tmp_path: Path) -> None:
    with pytest.raises(LoadError, match=r"no config\.json"):
        find_folder(tmp_path)
    inner = _write(tmp_path, {"model/config.json": {}, ".cache/config.json": {}}) / "model"
    assert find_folder(tmp_path) == inner
    _write(tmp_path, {"other/config.json": {}})
    with pytest.raises(LoadError, match="2 folders"):
        find_folder(tmp_path)
    with pytest.raises(LoadError, match="one file"):
        find_folder(inner / "config.json")
    assert find_folder(_write(tmp_path, {"config.json": {}})) == tmp_path


def test_a_plain_chat_ends_where_the_assistant_speaks() -> None:
    messages = [{"role": "system", "content": "be kind"}, {"role": "user", "content": "hello"}]
    assert plain_chat(messages) == "system: be kind\nuser: hello\nassistant:"
