"""Real models small enough to make in a second: the same files as a large one, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BertConfig,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from train.evaluate.held_out_text import held_out_text

START, END = "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


TINY: dict[str, Any] = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 2,
}
"""Sizes that decoders of every family take."""


def train_tokenizer() -> Tokenizer:
    """Byte-level BPE of SmolLM's kind: single digits, and ``<|endoftext|>``, start and end as ids 0, 1 and 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=512,
        special_tokens=["<|endoftext|>", START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(held_out_text().text.split("\n\n"), trainer)
    return tokenizer


def tiny_config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=512,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
        initializer_range=0.08,
    )


def write_llama(directory: Path) -> LlamaForCausalLM:
    """A Hugging Face directory with two layers; returns the model in it."""
    torch.manual_seed(0)
    model = LlamaForCausalLM(tiny_config()).eval()
    model.save_pretrained(directory)
    PreTrainedTokenizerFast(
        tokenizer_object=train_tokenizer(),
        bos_token=START,
        eos_token=END,
        pad_token=END,
        chat_template=CHAT_TEMPLATE,
    ).save_pretrained(directory)
    return model


def write_bert(directory: Path, layers: int = 2) -> BertModel:
    """A sentence-transformers directory with a small encoder, mean pooling, and texts cut at 64 tokens."""
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
        initializer_range=0.1,
    )
    model = BertModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(directory)
    tokenizer = train_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}", special_tokens=[(START, 1), (END, 2)]
    )
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(32)
    tokenizer.save(str(directory / "tokenizer.json"))
    (directory / "modules.json").write_text("[]")
    (directory / "sentence_bert_config.json").write_text('{"max_seq_length": 64}')
    (directory / "1_Pooling").mkdir()
    (directory / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    return model


HEADS: dict[str, tuple[Any, dict[int, str]]] = {
    "classify": (BertForSequenceClassification, {0: "sport", 1: "politics", 2: "weather"}),
    "score": (BertForSequenceClassification, {0: "relevant"}),
    "token_classify": (BertForTokenClassification, {0: "O", 1: "B-PER", 2: "I-PER"}),
    "question_answer": (BertForQuestionAnswering, {0: "start", 1: "end"}),
}
"""transformers' class and the labels, by task."""


def write_headed(directory: Path, task: str, seed: int = 0) -> Any:
    """A Hugging Face directory with a small BERT and the head of a task; returns the model in it."""
    torch.manual_seed(seed)
    kind, labels = HEADS[task]
    config = BertConfig(
        vocab_size=512,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=96,
        max_position_embeddings=128,
        initializer_range=0.1,
        id2label=labels,
        label2id={name: index for index, name in labels.items()},
    )
    model = kind(config).eval()
    model.save_pretrained(directory)
    write_encoder_tokenizer(directory)
    return model


def write_t5(directory: Path) -> T5ForConditionalGeneration:
    """A Hugging Face directory with a small T5; returns the model in it."""
    torch.manual_seed(0)
    config = T5Config(
        vocab_size=512,
        d_model=64,
        d_kv=16,
        d_ff=96,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=2,
        initializer_factor=0.5,
    )
    model = T5ForConditionalGeneration(config).eval()
    model.shared.weight.data *= 0.05  # or else it repeats the token that it reads
    model.save_pretrained(directory)
    write_encoder_tokenizer(directory)
    return model


def write_encoder_tokenizer(directory: Path) -> None:
    """tokenizer.json with BERT's marks around a text and between two."""
    tokenizer = train_tokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{START} $A {END}",
        pair=f"{START} $A {END} $B:1 {END}:1",
        special_tokens=[(START, 1), (END, 2)],
    )
    marks = {"cls_token": START, "sep_token": END, "pad_token": "<|endoftext|>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **marks).save_pretrained(directory)
