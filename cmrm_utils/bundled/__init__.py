"""The pretrained subject ``smollm2-llava``: its language model, its recipe, its weights."""
