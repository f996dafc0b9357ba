"""What goes through a model."""

from contextlib import contextmanager

import torch


@contextmanager
def watched(vlm):
    """``(rows, tokens)`` of every pass through the first decoder layer."""
    seen = []
    handle = vlm.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(tuple(args[0].shape[:2]))
    )
    try:
        yield seen
    finally:
        handle.remove()


def everywhere(vlm, trial):
    """Transformers' own ``output_hidden_states`` of one prompt, and its token ids.

    Returns:
        The states ``(tokens, layers - 1, hidden)`` after each decoder layer but the last, whose
        output transformers gives normed; and the ids.
    """
    inputs = vlm.inputs([trial.text], [trial.load_image()])
    with torch.inference_mode():
        states = vlm.model(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == len(vlm.layers) + 1
    return torch.stack([each[0].float() for each in states[1:-1]], dim=1), inputs["input_ids"][0]


def plain(vlm, trial, vectors=None, *, steps=0):
    """What transformers alone gives for one prompt: no engine, no padding, no shared work.

    Args:
        vlm: the model, of which only the processor, the model and the layers are used.
        trial: the prompt and its image.
        vectors: ``(layers, hidden)``, added to every token's state after each layer.
        steps: tokens to generate.

    Returns:
        The states ``(layers, hidden)`` at the last prompt token, and the tokens.
    """
    inputs, states = vlm.inputs([trial.text], [trial.load_image()]), []

    def hook(number, output):
        whole = isinstance(output, tuple)
        state = output[0] if whole else output
        if vectors is not None:
            state = state + vectors[number]
        states.append(state[0, -1].float())
        return (state, *output[1:]) if whole else state

    handles = [
        layer.register_forward_hook(lambda module, args, output, i=i: hook(i, output))
        for i, layer in enumerate(vlm.layers)
    ]
    try:
        with torch.inference_mode():
            vlm.model(**inputs)
            prompt = torch.stack(states[: len(vlm.layers)])
            ids = []
            if steps:
                whole = vlm.model.generate(**inputs, max_new_tokens=steps, do_sample=False)
                ids = whole[0, inputs["input_ids"].shape[1] :].tolist()
    finally:
        for handle in handles:
            handle.remove()
    return prompt, ids
