"""A tiny random language model in SmolLM2's place: ChatML, tied embeddings, a real tokenizer."""

import pytest
from families import shake
from language_models import byte_level
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from cmrm_utils.bundled import merge, training
from cmrm_utils.data import everyday

SMOL_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}"
    "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@pytest.fixture(scope="session")
def language_model(tmp_path_factory):
    """Its folder."""
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    fast = PreTrainedTokenizerFast(
        tokenizer_object=byte_level(everyday.refusals(), 600, marks),
        bos_token="<|im_start|>",
        eos_token="<|im_end|>",
        pad_token="<|im_end|>",
        unk_token="<|endoftext|>",
        chat_template=SMOL_TEMPLATE,
    )
    config = LlamaConfig(
        vocab_size=len(fast),
        hidden_size=48,
        intermediate_size=96,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    folder = tmp_path_factory.mktemp("tiny-smol")
    shake(LlamaForCausalLM(config)).save_pretrained(folder)
    fast.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def _tiny(request, language_model, tmp_path, monkeypatch):
    """A tiny language model stands for the real one, but where that is what is tested."""
    if request.path.stem == "test_smollm2":
        return
    monkeypatch.setenv("CMRM_CACHE", str(tmp_path / "cache"))
    for module in (merge, training):
        monkeypatch.setattr(module, "smollm2", lambda: language_model)
