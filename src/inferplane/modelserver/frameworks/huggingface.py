"""Hugging Face folders on transformers: classifiers, taggers, masks, embeddings and text generation.

The task is read from the folder: `modules.json` means sentence embeddings, otherwise the architecture
that `config.json` names decides; `--task=…` overrules both. Nothing is ever fetched from a hub and no
code that lies in the folder is run; weights are read as safetensors, or as pickles restricted to tensors.

Texts of one batch are sorted by length and computed in portions, so that little is padded and memory
stays bounded however many rows arrive together. What is longer than the model takes is cut off at the
end, as KServe's server does; the OpenAI protocol refuses it instead.

A forked server may use this module: its parent has imported torch but never computed with it, so no
thread pool existed to be lost in the fork.
"""

from __future__ import annotations

import inspect
import json
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from inferplane.modelserver.errors import BadInput, LoadError, LoadReason, short
from inferplane.modelserver.frameworks.base import (
    EXAMPLE_TEXT,
    PREDICT,
    PREDICT_PROBA,
    WHOLE,
    InputKind,
    Inputs,
    Model,
    Outputs,
    Signature,
    TensorSpec,
    missing_extra,
)
from inferplane.modelserver.generation import Sampling
from inferplane.modelserver.status import PREDICTIONS
from inferplane.modelserver.tensor import Array, Datatype, texts

log = logging.getLogger(__name__)

CONFIG_FILE = "config.json"
MODULES_FILE = "modules.json"
#: Rows times the longest row of one call of the model, in tokens. More gains no speed and costs memory.
PORTION_TOKENS_MAX = 8192
#: Used where neither the tokenizer nor the configuration bounds the length.
LENGTH_TOKENS_DEFAULT = 512
#: Tokenizers write absurd numbers for "no bound".
LENGTH_TOKENS_MAX = 1_000_000
MASK_CANDIDATES = 5
#: Spellings of a mask that are understood whatever the model's own is.
MASKS = ("[MASK]", "<mask>")
#: New tokens of a V1 or V2 request to a generating model; OpenAI's paths let the caller say.
PLAIN_NEW_TOKENS = 16
OPENAI = "openai"
EMBEDDING = "embedding"
#: Output of embedding models beside the vectors: the tokens of each text, before anything was cut off.
TOKENS = "tokens"
#: V1's form of answers that are no tensors; V2 gets the same as JSON text.
_ROWS = "rows"
_PLATFORM = "huggingface_transformers"


class Task(StrEnum):
    """What a model does with a text."""

    TEXT_CLASSIFICATION = "text-classification"
    TOKEN_CLASSIFICATION = "token-classification"  # noqa: S105 - tokens of text
    FILL_MASK = "fill-mask"
    EMBEDDINGS = "embeddings"
    TEXT_GENERATION = "text-generation"


#: Other people's words for the tasks.
_TASK_SPELLINGS: Mapping[str, Task] = {
    "sequence-classification": Task.TEXT_CLASSIFICATION,
    "sentiment-analysis": Task.TEXT_CLASSIFICATION,
    "ner": Task.TOKEN_CLASSIFICATION,
    "text-embedding": Task.EMBEDDINGS,
    "embedding": Task.EMBEDDINGS,
    "feature-extraction": Task.EMBEDDINGS,
    "sentence-similarity": Task.EMBEDDINGS,
    "generate": Task.TEXT_GENERATION,
}
#: Endings of architectures' names, the most telling first.
_ARCHITECTURES: tuple[tuple[str, Task], ...] = (
    ("ForSequenceClassification", Task.TEXT_CLASSIFICATION),
    ("ForTokenClassification", Task.TOKEN_CLASSIFICATION),
    ("ForMaskedLM", Task.FILL_MASK),
    ("ForCausalLM", Task.TEXT_GENERATION),
    ("LMHeadModel", Task.TEXT_GENERATION),
    ("Model", Task.EMBEDDINGS),
)
_DTYPES = ("auto", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Options:
    """What a manifest's arguments change. `length` bounds the tokens of one text; None: as the model says."""

    task: Task | None = None
    dtype: str = ""
    length: int | None = None
    probabilities: bool = False


def load(root: Path, threads: int, args: Sequence[str] = ()) -> _TextModel:
    """Load the model in a folder. Raises LoadError."""
    # Before the libraries are imported: nothing may be asked of a hub, or be told to one.
    os.environ["HF_HUB_OFFLINE"] = os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    folder = find_folder(root)
    options = parse_args(args)
    config = _read_json(folder / CONFIG_FILE)
    task = options.task or task_of(config, embeds=(folder / MODULES_FILE).exists())
    try:
        import torch
        import transformers
    except ImportError as error:
        raise missing_extra("transformers", "huggingface", error) from error
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    loader = _Loader(folder, options, torch, transformers)
    model: _TextModel = _MODELS[task](loader)
    log.info("%s: %s on %s", task, type(model).__name__, loader.device)
    return model


def find_folder(root: Path) -> Path:
    """The folder that holds config.json: `root`, or the only one in it. Raises LoadError."""
    if root.is_file():
        raise LoadError(
            LoadReason.MODEL_FILE_MISSING,
            f"{root.name} is one file; a Hugging Face model is a folder with {CONFIG_FILE}, weights and a tokenizer",
        )
    if (root / CONFIG_FILE).is_file():
        return root
    nested = sorted(path.parent for path in root.glob(f"*/{CONFIG_FILE}") if path.parent.name[0] != ".")
    if len(nested) == 1:
        return nested[0]
    if nested:
        names = ", ".join(path.name for path in nested[:8])
        raise LoadError(
            LoadReason.MODEL_FILE_AMBIGUOUS, f"{len(nested)} folders hold a {CONFIG_FILE}: {names}"
        )
    raise LoadError(
        LoadReason.MODEL_FILE_MISSING,
        f"the folder holds no {CONFIG_FILE}, so it is no Hugging Face model",
    )


def parse_args(args: Sequence[str]) -> Options:
    """Read the arguments that have an effect; the others are logged and ignored. Raises LoadError."""
    values: dict[str, str] = {}
    words = list(args)
    while words:
        word = words.pop(0)
        name, separator, value = word.lstrip("-").replace("_", "-").partition("=")
        if separator:
            value = word.partition("=")[2]
        elif words and not words[0].startswith("-"):
            value = words.pop(0)
        values[name] = value
    length = values.get("max-length") or values.get("max-model-len") or ""
    if length and not (length.isdecimal() and 0 < int(length) <= LENGTH_TOKENS_MAX):
        raise _unusable(f"--max_length is {length!r}; it must be a number of tokens")
    dtype = values.get("dtype", "")
    if dtype and dtype not in _DTYPES:
        raise _unusable(f"--dtype is {dtype!r}; it must be one of {', '.join(_DTYPES)}")
    flag = values.get("return-probabilities")
    ignored = sorted(
        set(values)
        - {
            "task",
            "dtype",
            "max-length",
            "max-model-len",
            "return-probabilities",
            "predict-proba",
            "model-id",
        }
    )
    if ignored:
        log.warning("arguments without effect here: %s", ", ".join(ignored))
    return Options(
        task=_task_named(values["task"]) if "task" in values else None,
        dtype=dtype,
        length=int(length) if length else None,
        probabilities=flag is not None and flag.lower() not in {"false", "0", "no"},
    )


def task_of(config: Mapping[str, Any], *, embeds: bool) -> Task:
    """The task of a model with this config.json. Raises LoadError when it cannot be told or is not served."""
    if embeds:
        return Task.EMBEDDINGS
    known = ", ".join(Task)
    architectures = config.get("architectures")
    if not isinstance(architectures, list) or not architectures:
        raise _unusable(
            f"{CONFIG_FILE} names no architecture; say what the model does with --task=… ({known})"
        )
    name = str(architectures[0])
    if "ForConditionalGeneration" not in name:
        for ending, task in _ARCHITECTURES:
            if name.endswith(ending):
                return task
    raise LoadError(
        LoadReason.UNSUPPORTED_FORMAT,
        f"the architecture {name[:80]} is for a task that is not served here; served are {known}",
    )


def portions(lengths: Sequence[int], tokens_max: int, rows_max: int | None = None) -> list[list[int]]:
    """Indexes of rows in groups of similar length whose padded size stays within `tokens_max` tokens.

    Longest first, ties in order; a row longer than the bound is a group of its own.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda index: (-lengths[index], index)):
        group = groups[-1] if groups else []
        full = rows_max is not None and len(group) >= rows_max
        if group and not full and (len(group) + 1) * max(1, lengths[group[0]]) <= tokens_max:
            group.append(index)
        else:
            groups.append([index])
    return groups


def _task_named(text: str) -> Task:
    word = text.strip().lower().replace("_", "-")
    found = _TASK_SPELLINGS.get(word)
    if found is None:
        try:
            return Task(word)
        except ValueError:
            known = ", ".join(Task)
            raise _unusable(f"--task is {text[:80]!r}; it must be one of {known}") from None
    return found


class _Loader:
    """Reads a folder with the libraries; every failure comes out as a LoadError."""

    def __init__(self, folder: Path, options: Options, torch: Any, transformers: Any) -> None:
        self.folder = folder
        self.options = options
        self.torch = torch
        self._transformers = transformers
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def tokenizer(self) -> Any:
        return self._load("the tokenizer", self._transformers.AutoTokenizer, {})

    def model(self, auto: str) -> Any:
        # Float32 on a CPU, where halves are slow; on a GPU what the weights were saved as.
        dtype = self.options.dtype or ("float32" if self.device == "cpu" else "auto")
        model = self._load("the model", getattr(self._transformers, auto), {"dtype": dtype})
        return model.to(self.device).eval()

    def _load(self, what: str, factory: Any, more: Mapping[str, Any]) -> Any:
        try:
            return factory.from_pretrained(
                str(self.folder), local_files_only=True, trust_remote_code=False, **more
            )
        except MemoryError:
            raise
        except ImportError as error:
            raise _unusable(f"{what} needs something that is not installed: {short(error)}") from error
        except Exception as error:
            raise _unusable(f"{what} could not be loaded: {type(error).__name__}: {short(error)}") from error


class _TextModel(Model):
    """What all tasks share: one text a row, computed in portions."""

    platform = _PLATFORM
    steady = False

    def __init__(self, loader: _Loader, auto: str) -> None:
        self._torch = loader.torch
        self._device = loader.device
        self._tokenizer = loader.tokenizer()
        # Fast tokenizers keep truncation as state: two threads in one would disturb each other.
        self._tokenizing = threading.Lock()
        self._model = loader.model(auto)
        self.length = loader.options.length or _length_of(self._tokenizer, self._model.config)

    def _tokenize(self, rows: Sequence[str], **more: Any) -> Any:
        with self._tokenizing:
            return self._tokenizer(list(rows), truncation=True, max_length=self.length, **more)

    def _compute(self, tokens: Any) -> Iterator[tuple[list[int], Any, Any]]:
        """(indexes of rows, their attention mask, the model's output), portion by portion."""
        ids = tokens["input_ids"]
        # Without a padding token, models that look for the last token cannot find it in padded rows.
        rows_max = None if self._model.config.pad_token_id is not None else 1
        for rows in portions([len(row) for row in ids], PORTION_TOKENS_MAX, rows_max):
            inputs = {
                name: self._padded([tokens[name][row] for row in rows], self._padding(name))
                for name in ("input_ids", "attention_mask", "token_type_ids")
                if name in tokens
            }
            yield rows, inputs["attention_mask"], self._model(**inputs)

    def _padding(self, name: str) -> int:
        return (self._tokenizer.pad_token_id or 0) if name == "input_ids" else 0

    def _padded(self, rows: list[list[int]], value: int) -> Any:
        width = max(1, *(len(row) for row in rows)) if len(rows) > 1 else max(1, len(rows[0]))
        table = np.full((len(rows), width), value, dtype=np.int64)
        for index, row in enumerate(rows):
            table[index, : len(row)] = row
        return self._torch.from_numpy(table).to(self._device)


class TextClassifier(_TextModel):
    """A label for each text, with the probabilities of all; a number where the model has one output."""

    def __init__(self, loader: _Loader) -> None:
        super().__init__(loader, "AutoModelForSequenceClassification")
        config = self._model.config
        self._labels = [str(config.id2label.get(index, index)) for index in range(config.num_labels)]
        self._regresses = config.problem_type == "regression" or config.num_labels == 1
        self._several = config.problem_type == "multi_label_classification"
        size = config.num_labels
        label = TensorSpec(PREDICT, Datatype.FP32 if self._regresses else Datatype.BYTES, (-1,))
        share = TensorSpec(PREDICT_PROBA, Datatype.FP32, (-1, size))
        self.signature = _signature(
            (label,) if self._regresses else (label, share),
            plain=PREDICT_PROBA if loader.options.probabilities and not self._regresses else PREDICT,
            probabilities="" if self._regresses else PREDICT_PROBA,
        )

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = _texts(inputs)
        with self._torch.inference_mode():
            scores = np.zeros((len(rows), len(self._labels)), dtype=np.float32)
            for indexes, _, output in self._compute(self._tokenize(rows)):
                logits = output.logits.float()
                if not self._regresses:
                    logits = logits.sigmoid() if self._several else logits.softmax(-1)
                scores[indexes] = logits.cpu().numpy()
        result: dict[str, Array] = {}
        for name in outputs:
            if name == PREDICT_PROBA:
                result[name] = scores
            elif self._regresses:
                result[name] = scores[:, 0]
            else:
                result[name] = _objects([self._labels[index] for index in scores.argmax(1).tolist()])
        return result

    def examples(self) -> Iterator[list[Any]]:
        yield [EXAMPLE_TEXT]


class TokenClassifier(_TextModel):
    """The tagged words of each text. V1: a list of objects a row; V2: the same as JSON text."""

    def __init__(self, loader: _Loader) -> None:
        super().__init__(loader, "AutoModelForTokenClassification")
        self._labels = self._model.config.id2label
        self.signature = _signature((TensorSpec(PREDICT, Datatype.BYTES, (-1,)),), plain=_ROWS)

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = _texts(inputs)
        tokens = self._tokenize(
            rows, return_special_tokens_mask=True, return_offsets_mapping=self._tokenizer.is_fast
        )
        found: list[Any] = [None] * len(rows)
        with self._torch.inference_mode():
            for indexes, _, output in self._compute(tokens):
                shares = output.logits.float().softmax(-1).cpu().numpy()
                for place, index in enumerate(indexes):
                    found[index] = self._tagged(rows[index], tokens, index, shares[place])
        return _rows_or_json(found, outputs)

    def _tagged(self, text: str, tokens: Any, row: int, shares: Array) -> list[dict[str, Any]]:
        """Every token whose label is not “O” (outside), as (entity, score, word, start, end)."""
        ids, special = tokens["input_ids"][row], tokens["special_tokens_mask"][row]
        words = self._tokenizer.convert_ids_to_tokens(ids)
        entries: list[dict[str, Any]] = []
        for position, word in enumerate(words):
            best = int(shares[position].argmax())
            label = str(self._labels[best])
            if special[position] or label == "O":
                continue
            entry: dict[str, Any] = {
                "entity": label,
                "score": float(shares[position][best]),
                "index": position,
                "word": word,
            }
            if "offset_mapping" in tokens:
                start, end = tokens["offset_mapping"][row][position]
                entry |= {"word": text[start:end], "start": start, "end": end}
            entries.append(entry)
        return entries

    def examples(self) -> Iterator[list[Any]]:
        yield ["Ada Lovelace lived in London."]


class MaskFiller(_TextModel):
    """The likeliest words for each mask. V1: a list of objects a row; V2: the same as JSON text."""

    def __init__(self, loader: _Loader) -> None:
        super().__init__(loader, "AutoModelForMaskedLM")
        if self._tokenizer.mask_token is None:
            raise _unusable("the tokenizer has no mask token, so there is nothing to fill")
        self._mask = str(self._tokenizer.mask_token)
        self.signature = _signature((TensorSpec(PREDICT, Datatype.BYTES, (-1,)),), plain=_ROWS)

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = [self._with_mask(text) for text in _texts(inputs)]
        tokens = self._tokenize(rows)
        found: list[Any] = [None] * len(rows)
        with self._torch.inference_mode():
            for indexes, _, output in self._compute(tokens):
                for place, index in enumerate(indexes):
                    found[index] = self._filled(tokens["input_ids"][index], output.logits[place])
        return _rows_or_json(found, outputs)

    def _with_mask(self, text: str) -> str:
        for spelling in MASKS:
            text = text.replace(spelling, self._mask)
        if self._mask not in text:
            raise BadInput(f"the text has no {self._mask} to fill: {text[:80]!r}")
        return text

    def _filled(self, ids: list[int], logits: Any) -> list[Any]:
        """Candidates for the mask; a list of such lists when there are several masks."""
        places = [place for place, token in enumerate(ids) if token == self._tokenizer.mask_token_id]
        if not places:
            raise BadInput(f"the mask lies beyond the {self.length} tokens that this model takes")
        answers: list[list[dict[str, Any]]] = []
        for place in places:
            top = logits[place].float().softmax(-1).topk(min(MASK_CANDIDATES, logits.shape[-1]))
            answers.append(
                [
                    self._candidate(ids, place, *pair)
                    for pair in zip(top.indices.tolist(), top.values.tolist(), strict=True)
                ]
            )
        return answers[0] if len(answers) == 1 else answers

    def _candidate(self, ids: list[int], place: int, token: int, score: float) -> dict[str, Any]:
        whole = [*ids[:place], token, *ids[place + 1 :]]
        with self._tokenizing:
            word = self._tokenizer.decode([token]).strip()
            return {
                "score": score,
                "token": token,
                "token_str": word,
                "sequence": self._tokenizer.decode(whole, skip_special_tokens=True),
            }

    def examples(self) -> Iterator[list[Any]]:
        yield [f"The capital of France is {self._mask}."]


class Embedder(_TextModel):
    """A vector for each text, pooled and normalised as the folder says (sentence-transformers' files)."""

    protocols = (*PREDICTIONS, OPENAI)

    def __init__(self, loader: _Loader) -> None:
        self._pooling = read_pooling(loader.folder)
        super().__init__(loader, "AutoModel")
        own = loader.options.length or self._pooling.length
        self.length = min(own, self.length) if own else self.length
        self.dimensions = int(self._model.config.hidden_size)
        self.signature = _signature(
            (TensorSpec(EMBEDDING, Datatype.FP32, (-1, self.dimensions)),), plain=EMBEDDING
        )

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        rows = [self._pooling.prompt + text for text in _texts(inputs)]
        if self._pooling.lowercase:
            rows = [text.lower() for text in rows]
        tokens = self._tokenize(rows)
        result: dict[str, Array] = {}
        if EMBEDDING in outputs:
            result[EMBEDDING] = self._embedded(tokens, len(rows))
        if TOKENS in outputs:
            result[TOKENS] = self._counts(rows, tokens)
        return result

    def _embedded(self, tokens: Any, rows: int) -> Array:
        vectors = np.zeros((rows, self.dimensions), dtype=np.float32)
        with self._torch.inference_mode():
            for indexes, mask, output in self._compute(tokens):
                pooled = self._pool(output.last_hidden_state.float(), mask)
                if self._pooling.normalise:
                    pooled = self._torch.nn.functional.normalize(pooled, dim=-1)
                vectors[indexes] = pooled.cpu().numpy()
        return vectors

    def _pool(self, states: Any, mask: Any) -> Any:
        """[rows, tokens, size] → [rows, size · modes]."""
        weights = mask.unsqueeze(-1).float()
        parts = []
        for mode in self._pooling.modes:
            if mode == "cls":
                parts.append(states[:, 0])
            elif mode == "max":
                parts.append(states.masked_fill(weights == 0, float("-inf")).amax(1))
            elif mode == "last":
                last = mask.sum(1) - 1
                parts.append(states[self._torch.arange(len(states), device=states.device), last])
            else:
                count = weights.sum(1).clamp(min=1e-9)
                parts.append((states * weights).sum(1) / (count.sqrt() if mode == "sqrt" else count))
        return self._torch.cat(parts, dim=-1)

    def _counts(self, rows: Sequence[str], tokens: Any) -> Array:
        counts = [len(row) for row in tokens["input_ids"]]
        for index, count in enumerate(counts):
            if count >= self.length:  # perhaps cut off: ask how long it was
                with self._tokenizing:
                    counts[index] = len(self._tokenizer(rows[index], verbose=False)["input_ids"])
        return np.array(counts, dtype=np.int64)

    def examples(self) -> Iterator[list[Any]]:
        yield [EXAMPLE_TEXT]


@dataclass(frozen=True, slots=True)
class Pooling:
    """How token states become one vector: modes (cls, mean, sqrt, max, last), one after the other."""

    modes: tuple[str, ...] = ("mean",)
    normalise: bool = True
    length: int | None = None
    lowercase: bool = False
    prompt: str = ""


#: sentence-transformers' flags, in the order in which it joins their vectors.
_POOLING_MODES = (
    ("pooling_mode_cls_token", "cls"),
    ("pooling_mode_max_tokens", "max"),
    ("pooling_mode_mean_tokens", "mean"),
    ("pooling_mode_mean_sqrt_len_tokens", "sqrt"),
    ("pooling_mode_lasttoken", "last"),
)
_POOLING_NAMES = {
    "cls": "cls",
    "max": "max",
    "mean": "mean",
    "mean_sqrt_len_tokens": "sqrt",
    "lasttoken": "last",
}


def read_pooling(folder: Path) -> Pooling:
    """Read sentence-transformers' files; without them, the mean of all tokens, normalised.

    Raises LoadError for a module that is not served here: leaving it out would give wrong vectors.
    """
    if not (folder / MODULES_FILE).exists():
        return Pooling()
    modes: tuple[str, ...] = ()
    normalise = False
    for module in _read_json(folder / MODULES_FILE, list):
        kind = str(module.get("type", "")).rpartition(".")[2]
        if kind == "Pooling":
            modes = _pooling_modes(_read_json(folder / str(module.get("path", "")) / CONFIG_FILE))
        elif kind == "Normalize":
            normalise = True
        elif kind != "Transformer":
            raise _unusable(f"{MODULES_FILE} has a module {kind[:40]!r}, which is not served here")
    if not modes:
        raise _unusable(f"{MODULES_FILE} has no pooling, so there is no one vector a text")
    sizes = _optional(folder / "sentence_bert_config.json")
    about = _optional(folder / "config_sentence_transformers.json")
    length = sizes.get("max_seq_length")
    prompts, chosen = about.get("prompts") or {}, about.get("default_prompt_name")
    return Pooling(
        modes,
        normalise,
        length if isinstance(length, int) else None,
        bool(sizes.get("do_lower_case", False)),
        str(prompts.get(chosen, "")) if chosen else "",
    )


def _pooling_modes(config: Mapping[str, Any]) -> tuple[str, ...]:
    named = config.get("pooling_mode")
    wanted = [named] if isinstance(named, str) else named if isinstance(named, list) else []
    modes = [_POOLING_NAMES.get(str(each), str(each)) for each in wanted]
    modes = modes or [mode for flag, mode in _POOLING_MODES if config.get(flag)]
    strange = [key for key, value in config.items() if key.startswith("pooling_mode_") and value is True]
    strange = [key for key in strange if key not in dict(_POOLING_MODES)]
    strange += [mode for mode in modes if mode not in _POOLING_NAMES.values()]
    if strange or not modes:
        raise _unusable(f"the pooling {', '.join(strange) or '(none)'} is not served here")
    return tuple(modes)


class Generator(_TextModel):
    """Text, one token a step. V1 and V2 get a short, likeliest continuation of each text."""

    protocols = (*PREDICTIONS, OPENAI)

    def __init__(self, loader: _Loader) -> None:
        super().__init__(loader, "AutoModelForCausalLM")
        self.context_tokens = loader.options.length or _context_of(self._model.config, self.length)
        self.vocabulary_size = int(self._model.config.get_text_config().vocab_size)
        self.signature = _signature((TensorSpec(PREDICT, Datatype.BYTES, (-1,)),), plain=PREDICT)
        self._ends = _end_tokens(self._model, self._tokenizer)
        self._forward = _Forward(self._model)

    # For V1 and V2.

    def predict(self, inputs: Inputs, outputs: Sequence[str]) -> Outputs:
        answers = [self._continued(text) for text in _texts(inputs)]
        return dict.fromkeys(outputs, _objects(answers))

    def _continued(self, text: str) -> str:
        tokens = self.encode(text)
        room = self.context_tokens - len(tokens)
        if room < 1:
            raise BadInput(
                f"the text has {len(tokens)} tokens, and this model takes {self.context_tokens - 1}"
            )
        sequence = self.start(tokens, Sampling(temperature=0.0))
        new: list[int] = []
        while len(new) < min(PLAIN_NEW_TOKENS, room) and (token := sequence.step()) is not None:
            new.append(token)
        return self.decode(new)

    def examples(self) -> Iterator[list[Any]]:
        yield ["Once upon a time"]

    # For generation.TextGenerator.

    def encode(self, text: str) -> list[int]:
        """Token ids with the special tokens that the model wants; never none at all."""
        with self._tokenizing:
            ids = list(self._tokenizer(text, verbose=False)["input_ids"])
        first = self._tokenizer.bos_token_id
        return ids or [first if first is not None else next(iter(sorted(self._ends)), 0)]

    def encode_chat(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """By the tokenizer's own template, or a plain one where it has none. Raises BadInput."""
        if not self._tokenizer.chat_template:
            return self.encode(plain_chat(messages))
        import jinja2

        try:
            with self._tokenizing:
                text = self._tokenizer.apply_chat_template(
                    list(messages), tokenize=False, add_generation_prompt=True
                )
                # The template has written the special tokens already.
                return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])
        except jinja2.TemplateError as error:
            raise BadInput(
                f"this model's chat template does not take these messages: {short(error)}"
            ) from error

    def decode(self, tokens: Sequence[int]) -> str:
        with self._tokenizing:
            text: str = self._tokenizer.decode(
                list(tokens), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
        return text

    def start(self, tokens: Sequence[int], sampling: Sampling) -> _Sequence:
        return _Sequence(self._torch, self._forward, list(tokens), sampling, self._ends)


class _Forward:
    """One call of a generating model, whatever its version calls the cache of past states."""

    def __init__(self, model: Any) -> None:
        known = inspect.signature(model.forward).parameters
        self.device = model.device
        # V1's thread and that of the scheduler take turns.
        self.lock = threading.Lock()
        self._model = model
        self._past = "cache" if "cache" in known else "past_key_values"
        # Of a long prompt, only the last position's scores are wanted.
        self._more: dict[str, Any] = {"logits_to_keep": 1} if "logits_to_keep" in known else {}

    def __call__(self, ids: Any, past: Any) -> tuple[Any, Any]:
        """(scores, cache) after these tokens. `past` is the cache before them, None at the beginning."""
        output = self._model(input_ids=ids, use_cache=True, **{self._past: past}, **self._more)
        return output.logits, getattr(output, self._past)


class _Sequence:
    """One generation with its own cache of past states."""

    def __init__(
        self, torch: Any, forward: _Forward, prompt: list[int], sampling: Sampling, ends: frozenset[int]
    ) -> None:
        self._torch = torch
        self._forward = forward
        self._next = prompt
        self._sampling = sampling
        self._ends = ends
        self._past: Any = None
        self._counts: dict[int, int] = {}
        self._chance: Any = None
        if sampling.temperature > 0:
            self._chance = torch.Generator(device=forward.device)
            if sampling.seed is None:
                self._chance.seed()
            else:
                self._chance.manual_seed(sampling.seed)

    def step(self) -> int | None:
        with self._forward.lock, self._torch.inference_mode():
            ids = self._torch.tensor([self._next], device=self._forward.device)
            logits, self._past = self._forward(ids, self._past)
            token = self._choose(logits[0, -1].float())
        self._next = [token]
        if token in self._ends:
            return None
        self._counts[token] = self._counts.get(token, 0) + 1
        return token

    def _choose(self, logits: Any) -> int:
        sampling = self._sampling
        if (sampling.presence_penalty or sampling.frequency_penalty) and self._counts:
            known = self._torch.tensor(list(self._counts), device=logits.device)
            counts = self._torch.tensor(list(self._counts.values()), device=logits.device)
            logits[known] -= sampling.presence_penalty + sampling.frequency_penalty * counts
        if sampling.temperature <= 0:
            return int(logits.argmax())
        shares = (logits / sampling.temperature).softmax(-1)
        if sampling.top_p < 1:
            ordered, places = shares.sort(descending=True)
            # Keep the smallest number of tokens that reach the share; always the first.
            ordered[ordered.cumsum(-1) - ordered >= sampling.top_p] = 0
            return int(places[self._torch.multinomial(ordered, 1, generator=self._chance)])
        return int(self._torch.multinomial(shares, 1, generator=self._chance))


def plain_chat(messages: Sequence[dict[str, str]]) -> str:
    """A conversation as plain text, for models without a template of their own."""
    lines = [f"{message['role']}: {message['content']}" for message in messages]
    return "\n".join([*lines, "assistant:"])


_MODELS: Mapping[Task, Any] = {
    Task.TEXT_CLASSIFICATION: TextClassifier,
    Task.TOKEN_CLASSIFICATION: TokenClassifier,
    Task.FILL_MASK: MaskFiller,
    Task.EMBEDDINGS: Embedder,
    Task.TEXT_GENERATION: Generator,
}


def _signature(outputs: tuple[TensorSpec, ...], *, plain: str, probabilities: str = "") -> Signature:
    return Signature(
        kind=InputKind.TEXT,
        inputs=(TensorSpec(WHOLE, Datatype.BYTES, (-1,)),),
        outputs=outputs,
        plain_output=plain,
        probability_output=probabilities,
        certain=True,
    )


def _texts(inputs: Inputs) -> list[str]:
    rows: list[str] = texts(WHOLE, inputs[WHOLE]).ravel().tolist()
    return rows


def _objects(values: Sequence[Any]) -> Array:
    array = np.empty(len(values), dtype=object)
    for index, value in enumerate(values):
        array[index] = value
    return array


def _rows_or_json(rows: Sequence[Any], outputs: Sequence[str]) -> Outputs:
    return {
        name: _objects(rows if name == _ROWS else [msgspec.json.encode(row).decode() for row in rows])
        for name in outputs
    }


def _length_of(tokenizer: Any, config: Any) -> int:
    """How many tokens of one text the model takes."""
    own = getattr(tokenizer, "model_max_length", None)
    places = getattr(config, "max_position_embeddings", None)
    known = [size for size in (own, places) if isinstance(size, int) and 0 < size <= LENGTH_TOKENS_MAX]
    return min(known, default=LENGTH_TOKENS_DEFAULT)


def _context_of(config: Any, otherwise: int) -> int:
    """How many tokens prompt and answer may have together."""
    text = config.get_text_config()
    for name in ("max_position_embeddings", "n_positions", "seq_length"):
        size = getattr(text, name, None)
        if isinstance(size, int) and 0 < size <= LENGTH_TOKENS_MAX:
            return size
    return otherwise


def _end_tokens(model: Any, tokenizer: Any) -> frozenset[int]:
    settings = getattr(model, "generation_config", None)
    ends = getattr(settings, "eos_token_id", None)
    found = {ends} if isinstance(ends, int) else set(ends or ())
    if tokenizer.eos_token_id is not None:
        found.add(tokenizer.eos_token_id)
    return frozenset(found)


def _read_json(path: Path, kind: type = dict) -> Any:
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise LoadError(
            LoadReason.MODEL_FILE_MISSING, f"{path.name} is missing in {path.parent.name}"
        ) from error
    except (OSError, ValueError) as error:
        raise _unusable(f"{path.name} cannot be read: {short(error)}") from error
    if not isinstance(content, kind):
        raise _unusable(f"{path.name} does not hold what it should")
    return content


def _optional(path: Path) -> Mapping[str, Any]:
    found: Mapping[str, Any] = _read_json(path) if path.exists() else {}
    return found


def _unusable(why: str) -> LoadError:
    return LoadError(LoadReason.MODEL_LOAD_FAILED, why)
