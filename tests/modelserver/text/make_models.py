"""A program: builds small models of every task in the folder given, and what the library itself answers.

python make_models.py FOLDER      →  FOLDER/<task>/…, FOLDER/expected.json
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

WORDS = [*"the a cat dog sat ran on mat good bad film day is was very oslo rome ada lives in . ,".split()]  # noqa: SIM905
CORPUS = [
    "the cat sat on the mat",
    "a dog ran",
    "a very good film",
    "ada lives in oslo",
    "grüße aus köln",
    "日本語",
]
TEXTS = ["the cat sat on the mat .", "a dog ran", "the film was very , very good .", "bad day"]
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message.role not in ['system', 'user', 'assistant'] %}{{ raise_exception('strange role') }}{% endif %}"
    "<|{{ message.role }}|>{{ message.content }}<|end|>"
    "{% endfor %}<|assistant|>"
)


def main(folder: Path) -> None:
    import torch

    torch.manual_seed(0)
    torch.set_num_threads(1)
    expected: dict[str, Any] = {"texts": TEXTS}
    _encoders(folder, expected)
    _generators(folder, expected)
    (folder / "expected.json").write_text(json.dumps(expected))


def _encoders(folder: Path, expected: dict[str, Any]) -> None:
    import transformers as t

    vocabulary = folder / "vocab.txt"
    vocabulary.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]))
    tokenizer = t.BertTokenizerFast(str(vocabulary), model_max_length=32)
    sizes: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "max_position_embeddings": 40,
        "initializer_range": 0.5,
    }
    labels = {0: "calm", 1: "glad", 2: "sad"}
    tags = {0: "O", 1: "PER", 2: "LOC"}
    made = {
        "classifier": t.BertForSequenceClassification(t.BertConfig(**sizes, id2label=labels)),
        "regressor": t.BertForSequenceClassification(t.BertConfig(**sizes, num_labels=1)),
        "tagger": t.BertForTokenClassification(t.BertConfig(**sizes, id2label=tags)),
        "filler": t.BertForMaskedLM(t.BertConfig(**sizes)),
        "plain-embedder": t.BertModel(t.BertConfig(**sizes)),
    }
    for name, model in made.items():
        model.eval().save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    _expect_encoders(made, tokenizer, expected)


def _expect_encoders(made: dict[str, Any], tokenizer: Any, expected: dict[str, Any]) -> None:
    """Each text alone, without padding: batches must not change the answers."""
    import torch

    with torch.inference_mode():
        for name in ("classifier", "regressor", "tagger"):
            expected[name] = [
                made[name](**tokenizer(text, return_tensors="pt")).logits[0].tolist() for text in TEXTS
            ]
        masked = tokenizer("the cat [MASK] on the mat .", return_tensors="pt")
        shares = made["filler"](**masked).logits[0, 3].softmax(-1)
        expected["filler"] = [tokenizer.decode([int(shares.argmax())]).strip(), float(shares.max())]
        vectors = []
        for text in TEXTS:
            state = (
                made["plain-embedder"](**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            )
            vectors.append((state / state.norm()).tolist())
        expected["plain-embedder"] = vectors


def _generators(folder: Path, expected: dict[str, Any]) -> None:
    import torch
    import transformers as t
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|system|>", "<|user|>", "<|assistant|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    raw.train_from_iterator(CORPUS, trainer)
    for name, template, ends in (("chat", CHAT_TEMPLATE, True), ("continuer", None, False)):
        tokenizer = t.PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|end|>" if ends else None)
        tokenizer.chat_template = template
        config = t.GPT2Config(
            vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=2, n_positions=512, n_ctx=512,
            initializer_range=0.3, bos_token_id=0 if ends else None, eos_token_id=0 if ends else None,
        )  # fmt: skip
        model = t.GPT2LMHeadModel(config).eval()
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
        ids = tokenizer("the cat", return_tensors="pt").input_ids
        with torch.inference_mode():
            out = model.generate(ids, max_new_tokens=24, do_sample=False, pad_token_id=0)
        expected[name] = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
