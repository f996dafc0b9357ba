"""A tiny random Llama that mostly speaks of safe and unsafe, yes and no; with a real tokenizer."""

import torch
from families import shake, text_config
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors, trainers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}"
    "</s>{% endfor %}[judge]<|end_header_id|>"
)
WORDS = ["safe", "unsafe", "yes", "no", "Safe", "Unsafe", "Yes", "No"]


def byte_level(texts, size, marks):
    """A byte-level BPE tokenizer that is learnt from texts; ``marks`` are its special tokens."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=marks,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def make_tokenizer():
    # "unsafe" must be a word of its own: only words that are whole here have a token.
    texts = [f"{space}{word}" for word in WORDS for space in ("", " ") for _ in range(50)]
    tokenizer = byte_level(texts, 400, ["<s>", "</s>", "<|end_header_id|>"])
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE
    )


def make_model(tokenizer, seed=0):
    settings = text_config(tokenizer, num_hidden_layers=2, max_position_embeddings=2048)
    model = shake(LlamaForCausalLM(LlamaConfig(**settings)), seed)
    with torch.no_grad():  # a head that mostly speaks of the words
        model.lm_head.weight.mul_(0.3)
        for space in ("", "Ġ"):
            for word in WORDS:
                model.lm_head.weight[tokenizer.convert_tokens_to_ids(space + word)].mul_(16)
    return model
